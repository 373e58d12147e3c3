"""The computed memory of training against that of small models, and the accelerate configs."""

import importlib.util
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils.dataclasses import get_module_class_from_name
from layouts import SIZES, VISION_L, llama_config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typer.testing import CliRunner

import pllava
from pllava import PllavaConfig, lora_config

ROOT = Path(pllava.__file__).parent
spec = importlib.util.spec_from_file_location("memory", ROOT / "benchmarks" / "memory.py")
memory = importlib.util.module_from_spec(spec)
spec.loader.exec_module(memory)
ACCELERATE = ROOT / "train" / "accelerate"
# Without dropout: on the CPU its mask has the values' dtype, on a GPU it is of bytes
ADAPTER = lora_config(r=16, lora_dropout=0.0)
BATCH, TEXT_TOKENS = 2, 192


@pytest.fixture(scope="module")
def config():
    """A small model: 6 layers of roughly the real proportions, and 64 visual tokens of 256."""
    return PllavaConfig(
        vision_config=VISION_L
        | {"hidden_size": 64, "intermediate_size": 128, "image_size": 56, "num_hidden_layers": 2},
        text_config=llama_config(128, 6, 344, 4, 4, 600),
        image_token_index=598,
        video_token_index=599,
        num_frames=4,
        pooling_shape=[4, 4, 4],
    )


@pytest.fixture
def model(config):
    return memory.build(config, ADAPTER, "cpu")


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of `tensors` and of all tensors made under this mode, and their peak."""

    def __init__(self, tensors):
        super().__init__()
        self.live, self.most, self.known = 0, 0, set()
        for tensor in tensors:
            self._note(tensor)

    def _note(self, tensor):
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if address not in self.known:
            self.known.add(address)
            self.live += size
            self.most = max(self.most, self.live)
            weakref.finalize(storage, self._forget, address, size)

    def _forget(self, address, size):
        self.known.discard(address)
        self.live -= size

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf)
        return result


def hidden_states(model, samples):
    """Return the last hidden states of a padded batch under autocast: training without the head."""
    inputs = {name: samples[name] for name in ("input_ids", "pixel_values_videos")}
    mask = torch.ones_like(inputs["input_ids"])
    mask[0, -1] = 0
    with torch.autocast("cpu", torch.bfloat16):
        return model.get_base_model().model(**inputs, attention_mask=mask, use_cache=False).last_hidden_state


def kept_bytes(model, samples):
    """Return the bytes that autograd keeps of a forward pass, without the weights."""
    weights = {weight.data_ptr() for weight in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = hidden_states(model, samples)
    assert states.requires_grad
    return sum(kept.values())


def test_sizes_are_the_published_ones():
    for name, size in SIZES.items():
        assert memory.SIZES[name] == llama_config(*size)
        vision = memory.size_config(name).vision_config
        assert vision.model_type == VISION_L["model_type"]
        assert {key: getattr(vision, key) for key in VISION_L} == VISION_L


def test_model_states_match_a_real_training_step(config, model):
    computed = memory.model_states(memory.build(config, ADAPTER))["one process"]
    optimizer = memory.train_two_steps(model, memory.random_samples(config, 1, 8, "cpu"))
    weights = list(model.parameters())
    averages = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    assert sum(weight.nbytes for weight in weights) == computed.weights
    assert sum(weight.grad.nbytes for weight in weights if weight.grad is not None) == computed.gradients
    assert sum(average.nbytes for average in averages) == computed.optimizer


def test_nf4_size_matches_bitsandbytes():
    quantize = pytest.importorskip("bitsandbytes").functional.quantize_4bit
    packed, state = quantize(torch.randn(128, 192), quant_type="nf4")
    assert packed.nbytes + state.absmax.nbytes == 128 * 192 * memory.NF4


def test_kept_activations_match_autograd(config, model):
    samples = memory.random_samples(config, BATCH, TEXT_TOKENS, "cpu")
    computed = memory.activations(config, ADAPTER, BATCH, TEXT_TOKENS)
    layers = config.text_config.num_hidden_layers
    model.train().enable_input_require_grads()
    everything = kept_bytes(model, samples)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    boundaries = kept_bytes(model, samples)
    assert boundaries == pytest.approx(computed.projector + computed.boundaries, rel=0.25)
    layer = (everything - boundaries + computed.boundaries) / layers
    assert layer == pytest.approx(computed.layer, rel=0.1)


def test_peak_activations_match_a_real_step(config, model):
    samples = memory.random_samples(config, BATCH, TEXT_TOKENS, "cpu")
    computed = replace(memory.activations(config, ADAPTER, BATCH, TEXT_TOKENS), logits=0).total
    model.train().gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    hidden_states(model, samples).float().mean().backward()  # the gradients are there
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    live = LiveBytes([*model.parameters(), *model.buffers(), *gradients])
    states = live.live
    with live:
        samples = {name: tensor.clone() for name, tensor in samples.items()}
        hidden_states(model, samples).float().mean().backward()
    assert live.most - states == pytest.approx(computed, rel=0.1)


def test_largest_batch_fits_and_the_next_does_not(config, model):
    fixed = memory.model_states(model)["one process"]

    def of_batch(batch):
        return memory.activations(config, ADAPTER, batch)

    batch = memory.largest_batch(fixed, of_batch, 1)
    room = memory.USABLE * memory.GIB
    assert batch > 1 and fixed.total + of_batch(batch).total <= room < fixed.total + of_batch(batch + 1).total
    assert memory.largest_batch(memory.ModelStates(room, 0, 0), of_batch, 1) == 0


def test_docs_are_up_to_date():
    assert memory.FILE.read_text(encoding="utf-8") == memory.markdown(1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would measure")
def test_measuring_without_a_gpu_is_an_error():
    app = typer.Typer()
    app.command()(memory.main)
    result = CliRunner().invoke(app, ["--measure", "7b"])
    assert result.exit_code == 2 and "CUDA GPU" in result.output


@pytest.mark.parametrize("file", sorted(ACCELERATE.glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_configs_are_valid(file):
    config = load_config_from_file(str(file))  # an unknown key is an error
    assert config.mixed_precision == "bf16"
    assert config.num_processes == (1 if file.stem == "single" else config.num_machines * memory.GPUS)


def test_fsdp_wraps_only_the_text_models_layers(model):
    config = load_config_from_file(str(ACCELERATE / "fsdp.yaml"))
    name = config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"]
    wrapped = get_module_class_from_name(model, name)
    assert {type(layer) for layer in model.get_base_model().model.language_model.layers} == {wrapped}
    assert not any(isinstance(module, wrapped) for module in model.get_base_model().model.vision_tower.modules())
