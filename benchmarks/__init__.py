"""How fast training is: beside peers (`compare`), beside the machine (`roofline`), on a GPU (`gpu_table`)."""
