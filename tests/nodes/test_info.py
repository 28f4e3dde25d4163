from __future__ import annotations

import pytest
import torch
from graph import call, run, validate
from safetensors.torch import save_file


@pytest.fixture
def info(pack):
    return pack.nodes.info


def test_nothing_chosen_says_what_to_do(info):
    output = run(info.ModelInfo)
    assert "Choose a file" in output[0]
    assert output.ui == {"text": (output[0],)}


def test_every_handle_is_described_without_its_folder(info, model, text_encoders, vae, embeds, texts, pack):
    folder = str(pack.hyvideo_lib.demo.assets.FOLDER)
    for handle in (model, text_encoders, vae, embeds):
        report = run(info.ModelInfo, handle=handle)[0]
        assert report.startswith(repr(handle))
        assert folder not in report
        assert texts()[-1] == report


def test_models_say_how_much_of_them_is_where(info, vae, mm):
    def place() -> str:
        return run(info.ModelInfo, handle=vae)[0].splitlines()[-1]

    size = f"{vae.managed.model_size() / 2**20:.1f}"
    assert place() == f"0.0 of {size} MiB on cpu"
    mm.load_models_gpu([vae.managed])
    assert place() == f"{size} of {size} MiB on cpu"


def test_a_file_is_described_from_its_header(info, folder, pack):
    (folder("models/vae") / "some.safetensors").symlink_to(pack.hyvideo_lib.demo.assets.VAE)
    assert validate(info.ModelInfo, file="some.safetensors") is True
    report = run(info.ModelInfo, file="some.safetensors")[0]
    assert report.startswith("some.safetensors: ")
    assert "can be used" in report


def test_a_file_that_cannot_be_used_says_why(info, folder):
    save_file({"strange.weight": torch.zeros(2, 2)}, folder("models/diffusion_models") / "odd.safetensors")
    report = run(info.ModelInfo, file="odd.safetensors")[0]
    assert "cannot be used: " in report
    assert "strange.weight" in report


def test_files_of_every_folder_that_is_offered_are_found(info, folder):
    for kind in ("loras", "clip", "unet"):
        save_file({f"{kind}.weight": torch.zeros(1)}, folder(f"models/{kind}") / f"{kind}.safetensors")
    for kind in ("loras", "clip", "unet"):
        assert validate(info.ModelInfo, file=f"{kind}.safetensors") is True
        assert f"{kind}.safetensors: " in run(info.ModelInfo, file=f"{kind}.safetensors")[0]


def test_a_file_and_a_handle_are_both_described(info, vae, pack):
    report = run(info.ModelInfo, file=pack.nodes.files.DEMO, handle=vae)[0]
    assert report.index("transformer.safetensors") < report.index("HYV_VAE(")


def test_unreadable_files_are_named_with_their_code(info, folder, pack):
    (folder("models/loras") / "bad.safetensors").write_text("no")
    with pytest.raises(pack.hyvideo_lib.errors.BadInput, match=r"^bad\.safetensors .*\[file_\w+\]$"):
        run(info.ModelInfo, file="bad.safetensors")


def test_files_that_are_not_offered_are_refused_before_the_run(info):
    assert "file is 'gone'" in validate(info.ModelInfo, file="gone")
    assert validate(info.ModelInfo, file=None) is True


def test_it_always_looks_again(info):
    first, second = (call(info.ModelInfo, "fingerprint_inputs", {"file": info.NO_FILE}) for _ in range(2))
    assert first != second
