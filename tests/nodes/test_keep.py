from __future__ import annotations

import pytest
import torch

VIDEO = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def fail(pack):
    """fail(error, *videos): run a block that keeps videos and ends with an error; the error that comes out."""

    def fail(error, *videos):
        with pytest.raises(Exception) as caught, pack.nodes.keep.keeping(*videos):  # noqa: PT011
            raise error
        return caught.value

    return fail


def names(*folders) -> list[list[str]]:
    return [sorted(path.name for path in folder.iterdir()) for folder in folders]


def test_a_block_that_ends_well_leaves_nothing(pack, folder):
    with pack.nodes.keep.keeping(VIDEO) as keep:
        keep(VIDEO + 1)
        assert len(names(folder("temp"))[0]) == 2
    assert names(folder("temp"), folder("output")) == [[], []]


def test_a_failure_says_where_the_files_are_and_what_to_do_with_them(pack, fail, folder):
    errors = pack.hyvideo_lib.errors
    error = fail(errors.OutOfMemory("No room."), VIDEO, VIDEO + 1)
    assert isinstance(error, errors.OutOfMemory)
    assert str(error).startswith("No room. The latents are kept in ")
    for path in folder("output").iterdir():
        assert str(path) in str(error)
    for words in (str(folder("input")), "Load Latent", "hyvideo_lib generate --decode FILE --vae FILE"):
        assert words in str(error)
    temp, output = names(folder("temp"), folder("output"))
    assert (len(temp), len(output)) == (0, 2)


def test_the_same_latents_are_kept_once(pack, fail, folder):
    errors = [str(fail(pack.hyvideo_lib.errors.NonFiniteOutput("NaN."), VIDEO)) for _ in range(2)]
    (kept,) = folder("output").iterdir()
    assert errors[0] == errors[1]
    assert str(kept) in errors[1]
    assert names(folder("temp")) == [[]]
    fail(pack.hyvideo_lib.errors.NonFiniteOutput("NaN."), VIDEO[:, :, :1])
    assert len(names(folder("output"))[0]) == 2


def test_no_other_file_is_lost(pack, fail, folder):
    fail(pack.hyvideo_lib.errors.OutOfMemory("No room."), VIDEO)
    (other,) = folder("output").iterdir()
    other.write_text("precious")
    error = fail(pack.hyvideo_lib.errors.OutOfMemory("No room."), VIDEO)
    (kept,) = folder("temp").iterdir()
    assert str(kept) in str(error)
    assert other.read_text() == "precious"


def test_cancelled_they_stay_in_the_temporary_folder(fail, folder, mm):
    for _ in range(2):
        assert str(fail(mm.InterruptProcessingException("stop"), VIDEO)) == "stop"
        temp, output = names(folder("temp"), folder("output"))
        assert (len(temp), output) == (1, [])


def test_of_what_was_asked_wrongly_nothing_is_kept(pack, fail, folder):
    assert str(fail(pack.hyvideo_lib.errors.InvalidTiles("tile size"), VIDEO)) == "tile size"
    assert names(folder("temp"), folder("output")) == [[], []]


def test_an_error_of_others_goes_through_and_the_log_says_where_they_are(fail, folder, caplog):
    assert str(fail(KeyError("x"), VIDEO)) == "'x'"
    (kept,) = folder("output").iterdir()
    assert str(kept) in caplog.text


def test_without_room_in_the_output_folder_they_stay_and_the_error_says_how_long(pack, fail, folder, tmp_path):
    (tmp_path / "comfyui").mkdir()
    (tmp_path / "comfyui" / "output").write_text("no folder")
    error = fail(pack.hyvideo_lib.errors.OutOfMemory("No room."), VIDEO)
    (kept,) = folder("temp").iterdir()
    assert str(kept) in str(error)
    assert "They last until ComfyUI stops" in str(error)


def test_without_room_anywhere_the_error_is_as_it_was(pack, fail, folder, tmp_path):
    folder("output")
    (tmp_path / "comfyui" / "temp").write_text("no folder")
    assert str(fail(pack.hyvideo_lib.errors.OutOfMemory("No room."), VIDEO)) == "No room."
