"""What ComfyUI sees of the pack: the entry point, the list of nodes, and every node's form, which saved workflows hold
for ever."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORMS = {
    "HyvLoadTransformer": (
        "file variant storage compute_dtype attention",
        "fp8_matmul block_swap compile matmul",
        "model",
    ),
    "HyvLoadTextEncoders": ("llm clip llm_tokenizer clip_tokenizer storage device", "", "text_encoders"),
    "HyvLoadVAE": ("file dtype", "", "vae"),
    "HyvPromptTemplate": ("text", "text_encoders", "template"),
    "HyvEncodePrompt": ("text_encoders prompt negative_prompt template", "custom_template", "embeds"),
    "HyvEmbedsFromConditioning": ("positive", "negative", "embeds"),
    "HyvSaveEmbeds": ("embeds filename_prefix", "", ""),
    "HyvLoadEmbeds": ("file", "", "embeds"),
    "HyvEmptyLatents": ("width height frames batch", "", "latents"),
    "HyvSize": ("preset frames", "image", "width height frame_count"),
    "HyvEncodeVideo": ("vae frames tiles tile_size tile_frames sampled seed", "", "latents"),
    "HyvRope": ("time_scale height_scale width_scale extrapolate", "", "rope"),
    "HyvGuidance": ("cfg_scale start end rescale batched", "", "guidance_options"),
    "HyvBlockSwap": ("double_blocks single_blocks prefetch", "", "block_swap"),
    "HyvCompile": ("backend mode dynamic", "scope", "compile"),
    "HyvCache": ("method threshold start end max_skips residuals", "ratios", "cache"),
    "HyvLoRA": ("model file strength blocks", "", "with_lora report"),
    "HyvSampler": (
        "model embeds latents steps guidance shift seed solver strength",
        "rope guidance_options sigmas mask cache",
        "samples used_sigmas",
    ),
    "HyvDecode": ("vae latents tiles tile_size tile_frames", "shared_norms", "frames"),
    "HyvModelInfo": ("file", "handle", "report"),
    "HyvPlan": (
        "transformer vae llm storage width height frames cfg_scale gpu_memory",
        "matmul card ram link tiles tile_size tile_frames lora guidance_options block_swap cache attention "
        "encode_video",
        "report",
    ),
}
"""Required inputs, optional inputs and outputs of every node, in order. Saved workflows hold widgets by place and API
clients must send all required ones: nothing here is renamed, moved or taken away, and a new input goes to the end of
its node as an optional one with a default."""

HOST_MODULES = {"comfy", "folder_paths", "server", "latent_preview", "nodes", "execution"}


def schemas(pack):
    return {node: node.GET_SCHEMA() for node in pack.nodes.extension.list_nodes()}


def entries(pack):
    """(node id, input or output) of all nodes."""
    return [
        (schema.node_id, entry)
        for schema in schemas(pack).values()
        for entry in (*(schema.inputs or []), *(schema.outputs or []))
    ]


# The entry point


def test_the_entry_point_gives_an_extension_with_all_nodes(pack):
    extension = asyncio.run(pack.comfy_entrypoint())
    assert isinstance(extension, sys.modules["comfy_api.latest"].ComfyExtension)
    assert asyncio.run(extension.get_node_list()) == pack.nodes.extension.list_nodes()


def test_there_is_one_contract_with_comfyui(pack):
    assert pack.WEB_DIRECTORY == "./web"
    assert not hasattr(pack, "NODE_CLASS_MAPPINGS")


def test_a_pack_that_cannot_be_loaded_says_why(pack, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, f"{pack.__name__}.nodes.extension", None)
    with pytest.raises(ImportError):
        asyncio.run(pack.comfy_entrypoint())
    assert "Traceback" in caplog.text


def test_the_root_imports_nothing_before_it_is_asked():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    assert not [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]


def test_comfyuis_own_nodes_module_stays_its_own(pack):
    assert sys.modules["nodes"].__doc__ == "ComfyUI's own nodes."
    assert pack.nodes.__name__ == f"{pack.__name__}.nodes"


@pytest.mark.parametrize("file", sorted((ROOT / "nodes").glob("*.py")), ids=lambda file: file.stem)
def test_imports_are_relative_and_one_file_knows_comfyui(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            level = getattr(node, "level", 0)
            first = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            root = (first or "").split(".")[0]
            assert level or root != "hyvideo_lib", f"line {node.lineno}"
            assert level or root not in HOST_MODULES or file.stem == "comfy_host", f"line {node.lineno}"


def test_reading_the_node_list_reads_no_weights_and_makes_no_folder(tmp_path):
    code = f"""
import asyncio, importlib.util, sys
sys.path.insert(0, {str(ROOT / "tests" / "standin")!r})
import folder_paths
folder_paths.set_base({str(tmp_path / "base")!r})
import torch
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
spec = importlib.util.spec_from_file_location("pack", {str(ROOT / "__init__.py")!r})
pack = importlib.util.module_from_spec(spec)
sys.modules["pack"] = pack
spec.loader.exec_module(pack)
extension = asyncio.run(pack.comfy_entrypoint())
for node in asyncio.run(extension.get_node_list()):
    node.GET_SCHEMA()
assert not [path for path in opened if path.endswith((".safetensors", ".json"))], opened
assert not {{"transformers", "tokenizers", "safetensors"}} & set(sys.modules)
assert not torch.cuda.is_initialized()
late = "checkpoint. lora.read lora.attaching lora.adapters quant. transformer.model".split()
late += "pipeline.stages pipeline.sampler".split()
own = [name.partition("hyvideo_lib.")[2] for name in sys.modules]
assert not [name for name in own if name.startswith(tuple(late))]
"""
    subprocess.run([sys.executable, "-B", "-c", code], check=True, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


# The list


def test_the_nodes_are_these_in_this_order(pack):
    assert [schema.node_id for schema in schemas(pack).values()] == list(FORMS)
    assert all(node_id.startswith("Hyv") for node_id in FORMS)


def test_one_id_for_two_nodes_is_refused(pack, monkeypatch):
    extension = pack.nodes.extension
    monkeypatch.setattr(extension, "MODULES", (extension.load, extension.load))
    with pytest.raises(ValueError, match="HyvLoadVAE"):
        extension.list_nodes()


# The forms


def test_forms_are_as_saved_workflows_hold_them(pack):
    for schema in schemas(pack).values():
        inputs, outputs = schema.inputs or [], schema.outputs or []
        required, optional, out = (words.split() for words in FORMS[schema.node_id])
        assert [entry.id for entry in inputs if not entry.optional] == required, schema.node_id
        assert [entry.id for entry in inputs if entry.optional] == optional, schema.node_id
        assert [entry.id for entry in outputs] == out, schema.node_id


def test_a_schema_can_be_sent_to_the_page(pack):
    for _, entry in entries(pack):
        json.dumps(entry.as_dict(), allow_nan=False)


def test_nodes_stand_in_one_menu_under_their_own_names(pack):
    found = schemas(pack).values()
    assert all(schema.category.startswith("HunyuanVideo/") for schema in found)
    names = [schema.display_name for schema in found]
    assert len(set(names)) == len(names)
    assert all(name.startswith("HunyuanVideo ") for name in names)


def test_defaults_are_within_their_limits(pack):
    for node_id, entry in entries(pack):
        default, low, high = (getattr(entry, name, None) for name in ("default", "min", "max"))
        if low is not None:
            assert low <= default <= high, (node_id, entry.id)
        if getattr(entry, "options", None) and default is not None:
            assert default in entry.options, (node_id, entry.id)


# Forms and methods belong together


def method_parameters(node, name):
    return dict(inspect.signature(getattr(node, name)).parameters)


def test_execute_takes_the_inputs_and_no_other(pack):
    for node, schema in schemas(pack).items():
        assert list(method_parameters(node, "execute")) == [entry.id for entry in schema.inputs or []], schema.node_id


def test_execute_can_go_without_optional_inputs(pack):
    for node, schema in schemas(pack).items():
        parameters = method_parameters(node, "execute")
        optional = {entry.id: getattr(entry, "default", None) for entry in schema.inputs or [] if entry.optional}
        assert all(parameters[name].default == default for name, default in optional.items()), schema.node_id


@pytest.mark.parametrize("method", ["execute", "validate_inputs"])
def test_methods_have_the_defaults_of_the_form(pack, method):
    for node, schema in schemas(pack).items():
        parameters = method_parameters(node, method)
        for entry in schema.inputs or []:
            default = getattr(entry, "default", None)
            parameter = parameters.get(entry.id)
            if default is not None and parameter is not None and parameter.default is not parameter.empty:
                assert parameter.default == default, (schema.node_id, entry.id)


def test_checks_before_the_run_ask_only_for_inputs_that_there_are(pack):
    base = sys.modules["comfy_api.latest"].io.ComfyNode
    for node, schema in schemas(pack).items():
        for method in ("validate_inputs", "fingerprint_inputs"):
            if getattr(node, method).__func__ is not getattr(base, method).__func__:
                kinds = method_parameters(node, method)
                named = [name for name, value in kinds.items() if value.kind is not value.VAR_KEYWORD]
                assert set(named) <= {entry.id for entry in schema.inputs}, (schema.node_id, method)


def test_every_list_of_choices_is_checked_before_the_run(pack):
    """ComfyUI 0.3.64 checks none by itself."""
    for node, schema in schemas(pack).items():
        lists = {entry.id for entry in schema.inputs or [] if hasattr(entry, "options")}
        named = set(inspect.getfullargspec(node.validate_inputs).args) if lists else set()
        assert lists <= named, schema.node_id
