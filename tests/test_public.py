from importlib.metadata import version

import c2r


def test_the_public_page():
    for name in c2r.__all__:
        assert getattr(c2r, name).__name__ == name
    assert c2r.__all__ == sorted(c2r.__all__) == dir(c2r)
    assert set(c2r._HOMES) == set(c2r.__all__)


def test_the_version():
    assert c2r.__version__ == version("c2r-moe")
