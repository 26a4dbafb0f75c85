"""How fast training is: beside peers (`compare`), beside the machine (`roofline`), on a GPU (`gpu_table`).

And how far what is measured can be trusted: what the two-sample tests see (`power`), and what ALI finds where
the answer is known (`known_answer`).
"""
