"""The one file that knows ComfyUI: folders, the memory manager, progress and previews."""

from __future__ import annotations

import gc
import inspect
import sys
import weakref
from pathlib import Path

import pytest
import torch
from graph import run


@pytest.fixture
def host_module(pack):
    return pack.nodes.comfy_host


@pytest.fixture
def make(pack, host_module):
    """A small model of four blocks known to the memory manager, on a copy engine that really copies."""
    memory = pack.hyvideo_lib.memory

    def make(blocks: int = 4, swap=None):
        module = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(blocks + 1))).requires_grad_(False)
        offloader = memory.Offloader(module, list(module)[1:], blocks, swap, lambda tensor, device: tensor.clone())
        return host_module.manage(offloader, torch.device("cpu"))

    return make


def addresses(managed) -> list[int]:
    return [tensor.data_ptr() for tensor in managed.model.state_dict().values()]


# Folders


def test_files_are_listed_once_and_only_those_that_can_be_opened(host_module, folder):
    for name in ("a.safetensors", "b.sft", "c.ckpt", "d.gguf", "e.pt", "g.txt"):
        (folder("models/clip") / name).touch()
    (folder("models/text_encoders") / "a.safetensors").touch()
    assert host_module.list_files("text_encoders", "clip", "no such kind") == ["a.safetensors", "b.sft", "d.gguf"]


def test_a_model_in_parts_is_listed_by_its_first_part(host_module, folder):
    for part in (1, 2, 3):
        (folder("models/clip/llava") / f"model-0000{part}-of-00003.safetensors").touch()
    assert host_module.list_files("clip") == ["llava/model-00001-of-00003.safetensors"]


def test_comfyuis_own_tokenizers_are_found_where_it_has_them(host_module, tmp_path, monkeypatch):
    (tmp_path / "sd1_tokenizer").mkdir()
    monkeypatch.setattr(sys.modules["comfy"].__spec__, "submodule_search_locations", [str(tmp_path)])
    assert host_module.native_tokenizers() == [tmp_path / "sd1_tokenizer"]


def test_files_are_found_in_the_first_folder_that_has_them(host_module, folder):
    path = folder("models/unet/inner") / "a.safetensors"
    path.touch()
    assert host_module.find_file("inner/a.safetensors", "vae", "diffusion_models") == path
    assert host_module.find_file("a.safetensors", "diffusion_models") is None
    assert host_module.find_file("../unet/inner/a.safetensors", "vae") is None


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a/../../b", ".."])
def test_names_do_not_lead_out_of_a_folder(host_module, tmp_path, name):
    assert host_module.inside(tmp_path, name) is None
    assert host_module.candidates(name, "vae") == []


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 2048 + "b"])
def test_a_name_too_long_for_any_file_is_no_file(host_module, tmp_path, name):
    assert host_module.inside(tmp_path, name) is None
    assert host_module.find_file(name, "vae", "LLM") is None


def test_links_in_a_folder_are_followed(host_module, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "elsewhere")
    assert host_module.inside(tmp_path / "folder", "link/file") == tmp_path / "folder" / "link" / "file"


def test_the_next_output_is_a_free_name(host_module, folder):
    assert host_module.next_output("a/b", ".x") == (Path(folder("output"), "a", "b_00001_.x"), "a")
    Path(folder("output"), "a", "b_00001_.x").touch()
    assert host_module.next_output("a/b", ".x")[0].name == "b_00002_.x"
    with pytest.raises(Exception, match="outside"):
        host_module.next_output("../b", ".x")


def test_devices_are_comfyuis(host_module, mm):
    mm.pretend(device="cuda:1", text_device="cpu")
    assert host_module.compute_device() == host_module.vae_device() == torch.device("cuda:1")
    found = [host_module.text_device(choice) for choice in ("auto", "gpu", "cpu")]
    assert found == [torch.device(name) for name in ("cpu", "cuda:1", "cpu")]
    mm.pretend(limit=1000)
    assert host_module.free_bytes(torch.device("cpu")) == 1000


# Models in the memory manager


def test_loading_and_unloading_is_the_offloaders(host_module, make, mm):
    managed = make()
    home = addresses(managed)
    assert managed.loaded_size() == 0
    host_module.load(managed, working_bytes=10)
    assert managed.loaded_size() == managed.model_size() == managed.offloader.num_bytes
    assert mm.loaded_models() == [managed]
    assert not set(addresses(managed)) & set(home)
    mm.unload_all_models()
    assert (managed.loaded_size(), mm.loaded_models()) == (0, [])
    assert addresses(managed) == home


def test_loading_again_copies_nothing(host_module, make):
    managed = make()
    host_module.load(managed, working_bytes=0)
    there = addresses(managed)
    host_module.load(managed, working_bytes=0)
    assert addresses(managed) == there


def test_a_budget_leaves_blocks_at_home(host_module, make, mm):
    managed = make()
    mm.pretend(limit=managed.model_size())
    host_module.load(managed, working_bytes=managed.model_size() // 2)
    assert 0 < managed.loaded_size() <= managed.model_size() // 2
    assert managed.offloader.num_swapped == 4


def test_memory_that_runs_out_while_weights_come_leaves_blocks_at_home(pack, host_module, mm):
    """Another program took some of what was free a moment ago."""
    module = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(9))).requires_grad_(False)
    held = []

    def copy(tensor, device):
        if sum(part.nbytes for part in held) + tensor.nbytes > size // 2:
            held.clear()
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        held.append(tensor)
        return tensor.clone()

    offloader = pack.hyvideo_lib.memory.Offloader(module, list(module)[1:], 8, None, copy)
    managed, size = host_module.manage(offloader, torch.device("cpu")), offloader.num_bytes
    mm.pretend(limit=size)
    host_module.load(managed, working_bytes=0)
    assert 0 < managed.loaded_size() <= size // 2
    size = 0  # there is nothing at all
    mm.unload_all_models()
    with pytest.raises(torch.cuda.OutOfMemoryError):
        host_module.load(managed, working_bytes=0)
    assert managed.loaded_size() == 0


def test_no_more_comes_than_is_asked_for_though_there_is_room(host_module, make):
    managed = make()
    size = managed.model_size()
    host_module.load(managed, working_bytes=0, most=size // 2)
    assert 0 < managed.loaded_size() <= size // 2
    host_module.load(managed, working_bytes=0)
    assert managed.loaded_size() == size
    host_module.load(managed, working_bytes=0, most=size // 2)
    assert 0 < managed.loaded_size() <= size // 2


def test_more_room_brings_more_blocks(host_module, make, mm):
    managed = make()
    size = managed.model_size()
    mm.pretend(limit=size)
    host_module.load(managed, working_bytes=size // 2)
    some = managed.loaded_size()
    host_module.load(managed, working_bytes=0)
    assert some < managed.loaded_size() == size


def test_less_room_sends_blocks_home(host_module, make):
    """ComfyUI 0.8.0 says by how much a loaded model is too large."""
    managed = make()
    host_module.load(managed, working_bytes=0)
    managed.partially_load(torch.device("cpu"), -managed.model_size() // 2)
    assert 0 < managed.loaded_size() <= managed.model_size() // 2


def test_a_part_of_a_model_leaves_where_that_is_enough(host_module, make, mm):
    managed = make()
    mm.pretend(limit=2 * managed.model_size())
    host_module.load(managed, working_bytes=0)
    before = managed.loaded_size()
    mm.free_memory(managed.model_size() + 1, torch.device("cpu"))
    assert 0 < managed.loaded_size() < before
    assert mm.loaded_models() == [managed]
    mm.free_memory(2 * managed.model_size(), torch.device("cpu"))
    assert (managed.loaded_size(), mm.loaded_models()) == (0, [])


def test_other_models_move_out_for_ours_and_ours_for_others(host_module, make, mm):
    first, second = make(), make()
    mm.pretend(limit=int(1.5 * first.model_size()))
    host_module.load(first, working_bytes=0)
    host_module.load(second, working_bytes=0)
    assert first.loaded_size() < first.model_size()
    assert second.loaded_size() == second.model_size()
    host_module.load(first, working_bytes=0)
    assert second.loaded_size() < second.model_size()


def test_models_that_are_loaded_together_stay_together(host_module, make, mm):
    first, second = make(), make()
    host_module.load(first, second, working_bytes=0)
    assert first.loaded_size() + second.loaded_size() == 2 * first.model_size()
    assert set(mm.loaded_models()) == {first, second}


def test_running_out_of_memory_while_loading_leaves_nothing_behind(host_module, pack, mm):
    def fail(tensor, device):
        raise torch.OutOfMemoryError("no room")

    module = torch.nn.Linear(4, 4).requires_grad_(False)
    managed = host_module.manage(pack.hyvideo_lib.memory.Offloader(module, copy_fn=fail), torch.device("cpu"))
    home = addresses(managed)
    with pytest.raises(torch.OutOfMemoryError):
        host_module.load(managed, working_bytes=0)
    assert (managed.loaded_size(), mm.loaded_models(), addresses(managed)) == (0, [], home)


def test_a_model_that_nobody_wants_drops_out_at_once(pack, mm, embeds, sample):
    """Without waiting for the garbage collector: it would be gigabytes."""
    gc.collect()
    gc.disable()
    try:
        handle = run(pack.nodes.load.LoadTransformer)[0]
        sample(model=handle, steps=1)
        gone = weakref.ref(handle.model)
        others = [managed for managed in mm.loaded_models() if managed is not handle.managed]
        assert len(others) == len(mm.loaded_models()) - 1
        del handle
        assert gone() is None
        assert mm.loaded_models() == others
    finally:
        gc.enable()


def test_the_managed_model_keeps_to_the_base_classs_calls(host_module, make):
    """Whatever ComfyUI may pass by name, ours takes."""
    base = sys.modules["comfy.model_patcher"].ModelPatcher
    ours = type(make())
    for name, method in vars(base).items():
        if inspect.isfunction(method) and name not in ("__init__", "__del__"):
            parameters = [p for p in inspect.signature(method).parameters.values() if p.name != "self"]
            inspect.signature(getattr(ours, name)).bind(None, **{p.name: None for p in parameters})
    managed = make()
    assert managed.clone() is managed
    assert managed.model_dtype() == torch.float32
    assert managed.patch_model() is managed.detach(unpatch_all=False) is managed.model


# Progress


@pytest.mark.parametrize(
    ("done", "seconds", "said"),
    [
        (0, 0.0, "sampling 0/20"),
        (3, 3.75, "sampling 3/20, 1.25 s/it, 0:21 left"),
        (20, 40.0, "sampling 20/20, 2.00 s/it, 0:00 left"),
        (1, 100.0, "sampling 1/20, 100.00 s/it, 31:40 left"),
    ],
)
def test_progress_says_how_long_it_will_take(host_module, done, seconds, said):
    assert host_module.describe_progress("sampling", done, 20, seconds) == said


def test_a_stage_has_one_bar(host_module, bars, texts):
    host = host_module.ComfyHost("5")
    host.stage("sampling", 2)
    host.step(1, 2)
    host.step(2, 2)
    host.stage("decoding", 0)
    host.step(1, 4)
    assert bars.shown == [(1, 2), (2, 2), (1, 4)]
    assert bars.nodes == {"5"}
    assert [text.split(",")[0] for text in texts()] == [
        "sampling",
        "sampling 1/2",
        "sampling 2/2",
        "decoding",
        "decoding 1/4",
    ]


def test_text_goes_to_the_page_whose_run_it_is_and_nowhere_else(host_module):
    server = sys.modules["server"].PromptServer(None)
    host_module.show_text("5", "nobody is there")
    server.client_id = "page"
    host_module.show_text(None, "no node")
    host_module.show_text("5", "here")
    assert server.texts == [("5", "here", "page")]


def test_a_previewer_that_fails_is_left_out_and_the_run_goes_on(host_module, bars, caplog):
    import latent_preview

    latent_preview.has_previews = True
    host = host_module.ComfyHost("5", has_previews=True)
    host.preview(torch.zeros(1, 16, 1, 2, 2))
    host.stage("sampling", 2)
    host.preview(torch.zeros(1, 16, 1, 2, 2))
    assert len(bars.previews) == 1
    for _ in range(2):
        host.preview(torch.zeros(1, 3, 1, 2, 2))
    assert len(bars.previews) == 1
    assert caplog.text.count("no previews in this run") == 1


def test_cancelling_is_comfyuis_and_one_press_is_one_run(host_module, mm):
    host = host_module.ComfyHost("5")
    host.check_interrupt()
    mm.interrupt_current_processing()
    with pytest.raises(mm.InterruptProcessingException):
        host.check_interrupt()
    host.check_interrupt()


def test_the_host_is_one_for_the_library(host_module, pack):
    seam = pack.hyvideo_lib.host.Host
    names = [name for name, _ in inspect.getmembers(seam, inspect.isfunction) if not name.startswith("_")]
    for name in names:
        wanted, found = (inspect.signature(getattr(kind, name)) for kind in (seam, host_module.ComfyHost))
        assert list(found.parameters) == list(wanted.parameters)


def test_memory_that_is_asked_for_is_made(host_module, make, mm):
    managed = make()
    mm.pretend(limit=managed.model_size())
    host_module.load(managed, working_bytes=0)
    host_module.ComfyHost("5").request_memory(managed.model_size())
    assert managed.loaded_size() == 0


def test_the_room_for_a_run_counts_what_can_move_away(host_module, make, mm):
    managed = make()
    mm.pretend(limit=10 * managed.model_size())
    assert host_module.room_bytes(torch.device("cpu")) is None
    host_module.load(managed, working_bytes=0)
    device = managed.load_device = managed.offloader.device = torch.device("meta")
    assert host_module.free_bytes(device) == 9 * managed.model_size()
    assert host_module.room_bytes(device) == 10 * managed.model_size()
