"""From a config to a game: its parts, its compiled steps, the members of a population.

`__init__.pyi` lists what the package offers; a name is imported when it is first used, so that the parts and
the compiled steps can be had without the evaluators.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
