"""A module that is called like the function of its name.

``mlx_phi4.generate`` is a function and, for ``python -m``, a module. Whichever Python happens to
bind to the name, calling it must work.
"""

import sys
import types


class _CallableModule(types.ModuleType):
    def __call__(self, *args, **kwargs):
        return vars(self)[self.__name__.rpartition(".")[2]](*args, **kwargs)


def make_callable(name: str) -> None:
    """Let the module ``package.thing`` be called as its own function ``thing``."""
    module = sys.modules[name]
    if name != "__main__":
        module.__class__ = _CallableModule
