"""The LoRA node: a handle with one LoRA more, which acts in the sampler and leaves no trace."""

from __future__ import annotations

import pytest
import torch
from graph import call, defaults, run, validate
from safetensors.torch import load_file, save_file


@pytest.fixture
def lora(pack):
    return pack.nodes.lora


@pytest.fixture
def files(pack):
    """The demo's LoRA by family."""
    return pack.hyvideo_lib.demo.assets.LORAS


@pytest.fixture
def use(lora, model):
    """use(**widgets) -> the demo's transformer with its LoRA."""
    return lambda **widgets: run(lora.LoadLora, **{"model": model, **widgets})[0]


def test_the_list_has_the_folder_s_files_and_the_demo_s(lora, folder):
    (folder("models/loras") / "sub").mkdir()
    for name in (
        "a.safetensors",
        "sub/adapter_model.safetensors",
        "sub/adapter_config.json",
        "c.pt",
        "d.gguf",
        "e.sft",
    ):
        (folder("models/loras") / name).touch()
    options = next(entry for entry in lora.LoadLora.define_schema().inputs if entry.id == "file").options
    assert options == [
        "a.safetensors",
        "e.sft",
        "sub/adapter_model.safetensors",
        "hyvideo-demo",
        "hyvideo-demo (diffusers names)",
    ]


def test_a_new_handle_comes_back_and_the_old_one_stays(lora, model):
    first = run(lora.LoadLora, model=model, strength=0.5)[0]
    second = run(lora.LoadLora, model=first, strength=-2.0, blocks="single")[0]
    assert (len(model.loras), len(first.loras), len(second.loras)) == (0, 1, 2)
    assert [entry.strength for entry in second.loras] == [0.5, -2.0]
    assert not second.loras[1].blocks.includes("double_blocks.0.img_attn_qkv")
    assert second.model is model.model
    assert second.managed is model.managed
    assert repr(second).endswith("LoRA at 0.5, -2)")
    assert "LoRA" not in repr(model)


def test_it_acts_in_the_sampler_and_leaves_no_trace(use, sample):
    plain = sample()[0]["samples"]
    acting = sample(model=use())[0]["samples"]
    assert not torch.equal(acting, plain)
    assert torch.equal(sample()[0]["samples"], plain)
    assert torch.equal(sample(model=use(strength=0.0))[0]["samples"], plain)
    assert torch.equal(sample(model=use())[0]["samples"], acting)


@pytest.mark.parametrize("storage", ["as in the file", "float8_e5m2", "bfloat16"])
@pytest.mark.parametrize("blocks", [(0, 0), (1, 3), (2, 6)])
def test_swapped_and_in_every_storage_it_is_the_same_and_leaves_no_trace(pack, lora, sample, storage, blocks):
    """As in the file is fp8 with scales. What acts is bit-equal to resident blocks, what is taken away to before."""
    swap = run(pack.nodes.options.BlockSwapNode, double_blocks=blocks[0], single_blocks=blocks[1])[0]
    resident, handle = (
        run(pack.nodes.load.LoadTransformer, storage=storage, block_swap=option)[0] for option in (None, swap)
    )
    plain = sample(model=handle)[0]["samples"]
    expected, acting = (
        sample(model=run(lora.LoadLora, model=each, strength=0.7)[0])[0]["samples"] for each in (resident, handle)
    )
    assert handle.offloader.num_swapped == sum(blocks)
    assert torch.equal(acting, expected)
    assert not torch.equal(acting, plain)
    assert torch.equal(sample(model=handle)[0]["samples"], plain)


def test_another_strength_moves_no_weights_and_reads_no_file(pack, lora, use, sample, model, monkeypatch):
    sample(model=use(strength=1.0))
    moved, read = [], []
    part = type(model.offloader._fixed)
    move = part.move
    monkeypatch.setattr(part, "move", lambda self, device: (moved.append(self), move(self, device)))
    monkeypatch.setattr(pack.hyvideo_lib.lora, "read_lora", lambda *given: read.append(given))
    videos = [sample(model=use(strength=strength))[0]["samples"] for strength in (0.5, -1.0)]
    assert (moved, read) == ([], [])
    assert not torch.equal(*videos)


def test_several_in_a_row_act_together(use, sample):
    whole = sample(model=use())[0]["samples"]
    halves = sample(model=use(model=use(strength=0.5), strength=0.5))[0]["samples"]
    assert (halves - whole).abs().max() <= 1e-4 * whole.abs().max()


def test_both_of_the_demo_s_files_are_one_lora(use, sample):
    names = ("hyvideo-demo", "hyvideo-demo (diffusers names)")
    one, other = (sample(model=use(file=name))[0]["samples"] for name in names)
    assert (one - other).abs().max() <= 0.02 * one.abs().max()  # one file has the scale multiplied in, in bfloat16


def test_the_model_is_clean_after_a_cancelled_run(pack, use, sample, model, mm, bars):
    plain = sample()[0]["samples"]
    bars.on_update = lambda value, total: mm.interrupt_current_processing(True)
    with pytest.raises(mm.InterruptProcessingException):
        sample(model=use())
    bars.on_update = lambda value, total: None
    mm.interrupt_current_processing(False)
    assert not any("adapters" in vars(layer) for layer in model.model.modules())
    assert torch.equal(sample()[0]["samples"], plain)


def test_what_acts_is_told_on_the_node_and_as_text(lora, model, texts, folder, files):
    more = {**load_file(files["kohya"]), "text_encoder.q.lora_A.weight": torch.zeros(1, 1)}
    save_file(more, folder("models/loras") / "more.safetensors")
    report = run(lora.LoadLora, model=model, file="more.safetensors")[1]
    assert "rank 4, alpha 2" in report
    assert "text_encoder.q.lora_A.weight" in report
    assert texts() == [report]
    assert "no effect" not in report
    assert "has no effect: its strength is 0" in run(lora.LoadLora, model=model, strength=0.0)[1]
    elsewhere = run(lora.LoadLora, model=model, blocks="other")[1]
    assert "has no effect: it changes nothing in the blocks that were chosen. It changes double 0-1" in elsewhere
    zeros = {
        name: torch.zeros_like(tensor) if "up" in name else tensor for name, tensor in load_file(files["kohya"]).items()
    }
    save_file(zeros, folder("models/loras") / "zeros.safetensors")
    assert (
        "has no effect: all that it would add is zero" in run(lora.LoadLora, model=model, file="zeros.safetensors")[1]
    )


def test_a_handle_s_description_names_its_loras(pack, use):
    text = run(pack.nodes.info.ModelInfo, handle=use())[0]
    assert "large_lora.safetensors" in text


@pytest.mark.parametrize(
    ("widgets", "said"),
    [
        ({"file": "gone.safetensors"}, "file is 'gone.safetensors'"),
        ({"strength": 11.0}, "strength is 11"),
        ({"strength": float("nan")}, "strength"),
        ({"blocks": "doubles"}, "choice of blocks"),
        ({"file": "broken.safetensors"}, "broken.safetensors"),
        ({"file": "wan.safetensors"}, "for another model, Wan"),
        ({"file": "lokr.safetensors"}, "do not make a whole of any method"),
        ({"file": "flux.safetensors"}, "for another model, Flux"),
        ({"file": "transformer.safetensors"}, "transformer.safetensors is no LoRA"),
    ],
)
def test_what_cannot_be_is_refused_before_the_run(pack, lora, folder, widgets, said):
    loras = folder("models/loras")
    (loras / "broken.safetensors").write_bytes(b"no tensors")
    (loras / "transformer.safetensors").symlink_to(pack.hyvideo_lib.demo.assets.TRANSFORMER)
    layer, zero = "diffusion_model.double_blocks.0.img_attn_qkv", torch.zeros(2, 2)
    for name, tensors, metadata in (
        ("wan", {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": zero}, {}),
        ("lokr", {f"{layer}.lokr_w1": zero}, {}),
        ("flux", {f"{layer}.lora_A.weight": zero}, {"modelspec.architecture": "flux-1-dev/lora"}),
    ):
        save_file(tensors, loras / f"{name}.safetensors", metadata)
    assert said in validate(lora.LoadLora, **widgets)


def test_the_widgets_as_they_stand_are_accepted(lora):
    assert validate(lora.LoadLora) is True
    assert validate(lora.LoadLora, file=None, blocks=None) is True  # over a wire


def test_what_only_the_transformer_tells_is_refused_in_the_run(pack, lora, model, folder):
    name = "diffusion_model.double_blocks.0.img_attn_qkv"
    large = {f"{name}.lora_A.weight": torch.zeros(1, 3072), f"{name}.lora_B.weight": torch.zeros(9216, 1)}
    save_file(large, folder("models/loras") / "large.safetensors")
    assert validate(lora.LoadLora, file="large.safetensors") is True
    with pytest.raises(pack.hyvideo_lib.errors.UnsupportedFile, match=r"does not fit.*\[unsupported_file\]$"):
        run(lora.LoadLora, model=model, file="large.safetensors")
    with pytest.raises(pack.hyvideo_lib.errors.InvalidSetting, match=r"names double block 9.*\[invalid_setting\]$"):
        run(lora.LoadLora, model=model, blocks="double 9")


def test_a_file_made_anew_under_its_name_is_read_again(lora, folder, files):
    path = folder("models/loras") / "mine.safetensors"
    prints = []
    for family in files.values():
        path.write_bytes(family.read_bytes())
        widgets = {**defaults(lora.LoadLora), "file": "mine.safetensors"}
        prints.append(call(lora.LoadLora, "fingerprint_inputs", widgets))
    assert prints[0] != prints[1]


def test_a_configuration_beside_a_file_made_anew_is_read_again(lora, model, folder, files):
    path = folder("models/loras") / "adapter_model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(files["diffusers"]).items() if not name.endswith("alpha")}
    save_file(tensors, path)
    rank = next(tensor.shape[0] for name, tensor in tensors.items() if "lora_A" in name)
    prints, norms = [], []
    for alpha in (rank, 10 * rank):
        (path.parent / "adapter_config.json").write_text(f'{{"r": {rank}, "lora_alpha": {alpha}}}')
        widgets = {**defaults(lora.LoadLora), "file": path.name}
        prints.append(call(lora.LoadLora, "fingerprint_inputs", widgets))
        norms.append(run(lora.LoadLora, model=model, file=path.name)[0].loras[0].lora.coverage.norm)
    assert prints[0] != prints[1]
    assert norms[1] == pytest.approx(10 * norms[0])
