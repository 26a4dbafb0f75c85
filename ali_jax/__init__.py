"""ali_jax: Adversarially Learned Inference (Dumoulin et al., ICLR 2017) as pure functions in JAX and Flax.

ali = Networks(encoder, decoder, discriminator)          # three Flax modules
state = init_state(ali, tx, key, batch)
state, metrics = train_step(ali, tx, losses.ali, (), state, batch)
x_hat = reconstruct(ali, state.variables, x)

`__init__.pyi` lists the public names and where each is defined; a name is imported when it is first used.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
