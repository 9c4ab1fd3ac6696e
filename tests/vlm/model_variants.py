"""Folders of the reference VLM with one fault each, planted as people's tools leave them."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 10876360\n"
WEIGHTS = "model.safetensors"


def linked_copy(source: Path, target: Path) -> Path:
    """Copy a folder without copying bytes; its files are to be replaced, not changed."""
    return Path(shutil.copytree(source, target, copy_function=os.link))


def replace(path: Path, content: bytes | str) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def change_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(path.read_text())
    change(values)
    replace(path, json.dumps(values))


def change_weights(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    weights = change(load_file(folder / WEIGHTS))
    (folder / WEIGHTS).unlink()
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def without(part: str):
    return lambda weights: {n: t for n, t in weights.items() if part not in n}


def in_two_shards(folder: Path) -> None:
    """Write the weights as two files with an index."""
    weights = list(load_file(folder / WEIGHTS).items())
    (folder / WEIGHTS).unlink()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    halves = dict(weights[:50]), dict(weights[50:])
    for name, half in zip(names, halves, strict=True):
        save_file(half, folder / name, metadata={"format": "pt"})
    places = {n: name for name, half in zip(names, halves, strict=True) for n in half}
    (folder / f"{WEIGHTS}.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": places})
    )


def in_pickles(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(weights, folder / "pytorch_model.bin")


def plant_no_projector(folder):
    change_weights(folder, without("multi_modal_projector"))


def plant_no_tower(folder):
    change_weights(folder, without("vision_tower"))


def plant_no_layer(folder):
    change_weights(folder, without("layers.1.self_attn"))


def plant_original_names(folder):
    def rename(name):
        for number in "12":
            place = str(2 * int(number) - 2)
            name = name.replace(f"multi_modal_projector.linear_{number}", f"mm_projector.{place}")
        return name

    change_weights(folder, lambda weights: {rename(n): t for n, t in weights.items()})


def plant_prefix(folder):
    change_weights(folder, lambda weights: {f"module.{n}": t for n, t in weights.items()})


def plant_other_shape(folder):
    def cut(weights):
        name = next(n for n in weights if n.endswith("multi_modal_projector.linear_1.weight"))
        return {**weights, name: weights[name][:-1].contiguous()}

    change_weights(folder, cut)


def plant_extra_weight(folder):
    change_weights(folder, lambda weights: weights | {"value_head.weight": torch.zeros(2)})


def plant_fewer_layers(folder):
    change_json(folder / "config.json", lambda c: c["text_config"].update(num_hidden_layers=3))


def plant_larger_model(folder):
    change_json(folder / "config.json", lambda c: c["vision_config"].update(intermediate_size=640))


def plant_cut_weights(folder):
    replace(folder / WEIGHTS, (folder / WEIGHTS).read_bytes()[:100_000])


def plant_cut_header(folder):
    replace(folder / WEIGHTS, (folder / WEIGHTS).read_bytes()[:1000])


def plant_damaged_header(folder):
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[8] = ord("x")
    replace(folder / WEIGHTS, bytes(content))


def plant_login_page(folder):
    replace(folder / WEIGHTS, "<!DOCTYPE html><html><title>Log in</title></html>" * 100)


def plant_empty_weights(folder):
    replace(folder / WEIGHTS, b"")


def plant_lost_shard(folder):
    in_two_shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def plant_shard_of_another_model(folder):
    in_two_shards(folder)
    shutil.copy(
        folder / "model-00001-of-00002.safetensors", folder / "model-00002-of-00002.safetensors"
    )


def plant_damaged_index(folder):
    in_two_shards(folder)
    (folder / f"{WEIGHTS}.index.json").write_text('{"weight_map": ')


def plant_index_without_map(folder):
    in_two_shards(folder)
    (folder / f"{WEIGHTS}.index.json").write_text('{"metadata": {}, "weight_map": ["a"]}')


def plant_damaged_pickle(folder):
    in_pickles(folder)
    replace(folder / "pytorch_model.bin", (folder / "pytorch_model.bin").read_bytes()[:5000])


def plant_pickle_without_projector(folder):
    plant_no_projector(folder)
    in_pickles(folder)


def plant_no_weights(folder):
    (folder / WEIGHTS).unlink()
    (folder / "consolidated.00.pth").write_bytes(b"PK")


def plant_pointer_of_weights(folder):
    replace(folder / WEIGHTS, POINTER.format("0" * 64))


def plant_pointer_of_tokenizer(folder):
    replace(folder / "tokenizer.model", POINTER.format("1" * 64))


def plant_pointer_of_config(folder):
    replace(folder / "config.json", POINTER.format("2" * 64))


def plant_pointer_of_pickle(folder):
    in_pickles(folder)
    replace(folder / "pytorch_model.bin", POINTER.format("3" * 64))


def plant_adapter(folder):
    (folder / WEIGHTS).unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    (folder / "adapter_model.safetensors").write_bytes(b"")


def plant_projector_alone(folder):
    (folder / WEIGHTS).unlink()
    (folder / "mm_projector.bin").write_bytes(b"PK")


def plant_original_layout(folder):
    def old(config):
        del config["vision_config"], config["text_config"]
        config.update(architectures=["LlavaLlamaForCausalLM"], mm_vision_tower="openai/clip")

    change_json(folder / "config.json", old)


def plant_foreign_code(folder):
    def foreign(config):
        config.update(model_type="internvl_chat", auto_map={"AutoConfig": "configuration.Own"})
        config.update(architectures=["InternVLChatModel"])

    change_json(folder / "config.json", foreign)


def plant_damaged_config(folder):
    replace(folder / "config.json", (folder / "config.json").read_bytes()[:300])


def plant_value_of_another_type(folder):
    change_json(folder / "config.json", lambda c: c["text_config"].update(hidden_size="wide"))


def plant_no_heads(folder):
    change_json(folder / "config.json", lambda c: c["vision_config"].update(num_attention_heads=0))


def plant_larger_vocabulary(folder):
    def add(tokenizer):
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary["overmuch"] = max(vocabulary.values()) + 1

    change_json(folder / "tokenizer.json", add)


def plant_other_image_token(folder):
    change_json(folder / "config.json", lambda c: c.update(image_token_index=5))


def plant_unknown_image_token(folder):
    change_json(folder / "config.json", lambda c: c.update(image_token_index=32000))


def plant_other_patch_size(folder):
    change_json(folder / "processor_config.json", lambda c: c.update(patch_size=16))


def plant_other_image_size(folder):
    def smaller(config):
        sizes = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
        config["image_processor"].update(sizes)

    change_json(folder / "processor_config.json", smaller)


def plant_other_feature_strategy(folder):
    change_json(folder / "processor_config.json", lambda c: c.update(num_additional_image_tokens=0))


LLAVA = "llava-hf/llava-1.5-7b-hf"
AGAIN = "hf download REPO --local-dir"

WRONG_FILES = [
    (
        plant_no_projector,
        "4 weights of the model are not in its files (model.multi_modal_projector",
        "mm_projector.bin",
    ),
    (plant_no_tower, "model.vision_tower.", "often leaves a frozen vision tower out"),
    (plant_no_layer, "layers.1.self_attn", AGAIN),
    (plant_original_names, "mm_projector.0.bias", LLAVA),
    (plant_prefix, "all their names begin with 'module.'", "remove that from the names"),
    (plant_other_shape, "linear_1.weight: [191, 128] in the file, [192, 128]", "of another size"),
    (plant_extra_weight, "1 weights in its files are not in the model (value_head.weight)", AGAIN),
    (plant_fewer_layers, "layers.3.", "with fewer parts"),
    (plant_larger_model, "have another shape", "of another size"),
    (plant_cut_weights, "model.safetensors has 100000 of 10876360 bytes", AGAIN),
    (plant_cut_header, "model.safetensors has 1000 of", AGAIN),
    (plant_damaged_header, "model.safetensors is damaged", AGAIN),
    (plant_login_page, "model.safetensors is damaged", AGAIN),
    (plant_empty_weights, "model.safetensors is damaged", AGAIN),
    (plant_lost_shard, "model-00002-of-00002.safetensors is missing", AGAIN),
    (plant_shard_of_another_model, "of the model are not in its files", AGAIN),
    (plant_damaged_index, "model.safetensors.index.json is damaged", AGAIN),
    (plant_index_without_map, "model.safetensors.index.json is damaged", AGAIN),
    (plant_damaged_pickle, "pytorch_model.bin cannot be read", AGAIN),
    (plant_pickle_without_projector, "model.multi_modal_projector.linear_1", "mm_projector.bin"),
    (plant_pointer_of_weights, "git-lfs pointers in place of files: model.saf", "git lfs pull"),
    (plant_pointer_of_tokenizer, "in place of files: tokenizer.model", "git lfs pull"),
    (plant_pointer_of_config, "in place of files: config.json", "git lfs pull"),
    (plant_pointer_of_pickle, "in place of files: pytorch_model.bin", "git lfs pull"),
    (plant_adapter, "is an adapter (LoRA) for org/base", "merge_and_unload"),
    (plant_projector_alone, "only a projector of the original LLaVA code", LLAVA),
    (plant_original_layout, "layout of its original code (LlavaLlamaForCausalLM)", LLAVA),
    (plant_foreign_code, "layout of its original code (InternVLChatModel)", "InternVL3-1B-hf"),
    (plant_damaged_config, "has no vision-language configuration", "give the folder"),
    (plant_value_of_another_type, "hidden_size", "give the folder"),
    (plant_no_heads, "", "give the folder"),
]
"""Faults of weights and configuration: how to plant one, what is found, and the fix."""

NO_WEIGHTS = (plant_no_weights, "model.safetensors.index.json, only consolidated.00.pth", AGAIN)
"""Fault of a folder that a plan can still be made for."""

OTHER_PROCESSOR = [
    (plant_larger_vocabulary, "('overmuch'), but the embedding has vocab_size=", "resize_token"),
    (plant_other_image_token, "image_token_id=5 ('<user>')", "belong to these weights"),
    (plant_unknown_image_token, "image_token_id=32000", "belong to these weights"),
    (plant_other_patch_size, "patch_size=16, but its vision tower has patch_size=8", "copy the"),
    (plant_other_image_size, "64 x 64 pixels", "copy the processor"),
    (plant_other_feature_strategy, "writes 143 placeholders for an image", "num_additional"),
]
"""Faults of tokenizers and processors that do not fit the weights."""
