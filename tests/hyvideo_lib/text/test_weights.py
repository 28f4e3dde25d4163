import pytest

from hyvideo_lib.errors import MissingPackage
from hyvideo_lib.text.weights import importing_transformers


@pytest.mark.parametrize("kind", [ImportError, OSError, RuntimeError])
def test_a_broken_package_is_named(kind):
    with pytest.raises(MissingPackage, match="Could not load this library: torchaudio"), importing_transformers():
        raise kind("Could not load this library: torchaudio\nmore lines")


def test_an_interruption_is_no_broken_package():
    with pytest.raises(KeyboardInterrupt), importing_transformers():
        raise ImportError("initialization failed") from KeyboardInterrupt()
