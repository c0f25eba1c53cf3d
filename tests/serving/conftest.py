"""A student of the tiny Stable Diffusion and its export, for the tests of exports."""

import pytest
import tiny_students


@pytest.fixture(scope="module")
def sd15(teachers):
    """A student and its teacher."""
    return tiny_students.make(teachers["sd15"])


@pytest.fixture(scope="module")
def exported(sd15, tmp_path_factory):
    """A finished export, not to be changed."""
    out = tmp_path_factory.mktemp("exports") / "sd15"
    tiny_students.export(sd15, out)
    return out
