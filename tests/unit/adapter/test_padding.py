"""What a text gets does not depend on the padding that its batch gives it, however the model is called."""

import copy
import inspect
import threading

import pytest
import torch
from peft import get_peft_model, inject_adapter_in_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import foura
from foura import FouraConfig
from foura.adapter.gate import Gate
from tests.helpers.tiny_models import tiny_llama

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
BERT = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
}
TASKS = (*BERT, "FEATURE_EXTRACTION", "CAUSAL_LM", "SEQ_2_SEQ_LM", None)
SCOPES = ("sequence", "token")
QUIET = pytest.mark.filterwarnings("ignore:gate_scope='sequence' looks at all tokens")


def base(task: str | None) -> tuple[nn.Module, str]:
    """(a model for the task, the pattern of its layers)."""
    import transformers

    torch.manual_seed(0)
    if task == "CAUSAL_LM":
        return tiny_llama(), r".*\.(q_proj|v_proj|down_proj)"
    if task == "SEQ_2_SEQ_LM":
        config = transformers.T5Config(
            vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
        )
        return transformers.T5ForConditionalGeneration(config), r".*\.(q|k|v|wo)"
    config = transformers.BertConfig(**SIZES)
    return getattr(transformers, f"Bert{BERT.get(str(task), 'Model')}")(config), r".*\.(query|value|dense)"


def adapted(task: str | None, scope: str = "sequence", form: str = "sigmoid") -> nn.Module:
    model, layers = base(task)
    config = FouraConfig(
        r=5, foura_alpha=40, target_modules=layers, gate="adaptive", gate_form=form, gate_scope=scope,
        task_type=task, init_weights=False,
    )  # fmt: skip
    model = get_peft_model(model, config).double().eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias_out"):  # some open, some closed
            nn.init.normal_(parameter, std=0.5)
    return model


def batch(task: str | None, length: int = 7) -> dict[str, Tensor]:
    """Two texts of 5 and 7 tokens, padded to `length`; the target texts of an encoder-decoder have 4 and 7."""
    torch.manual_seed(1)
    ids = torch.randint(1, 64, (2, length))
    mask = (torch.arange(length) < torch.tensor([[5], [7]])).long()
    texts = {"input_ids": ids, "attention_mask": mask}
    if task == "SEQ_2_SEQ_LM":
        heard = (torch.arange(7) < torch.tensor([[4], [7]])).long()
        texts |= {"decoder_input_ids": torch.randint(1, 64, (2, 7)), "decoder_attention_mask": heard}
    return texts


def alone(texts: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """One text without its padding."""
    cut = {
        name: texts[f"{name.removesuffix('input_ids')}attention_mask"] for name in texts if name.endswith("input_ids")
    }
    return {name: texts[name][row : row + 1, mask[row].bool()] for name, mask in cut.items()}


def first(output) -> Tensor:
    return output.start_logits if "start_logits" in output else output[0]


@QUIET
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("task", TASKS)
@torch.no_grad()
def test_a_text_in_a_padded_batch_is_what_it_is_alone(task, scope) -> None:
    model, texts = adapted(task, scope), batch(task)
    together = first(model(**texts))
    bare = {name: value for name, value in texts.items() if name.endswith("input_ids")}
    for row in range(2):
        single = first(model(**alone(texts, row)))
        part = together[row : row + 1]
        torch.testing.assert_close(
            part if task == "SEQ_CLS" else part[:, : single.shape[1]], single, rtol=0, atol=1e-10
        )
    with model.disable_adapter():
        assert not torch.allclose(first(model(**texts)), together, atol=1e-3)  # the adapter does something
    if scope == "sequence":
        with foura.attention_mask(model, None):
            assert not torch.allclose(first(model(**bare)), together, atol=1e-6)


@QUIET
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.filterwarnings("ignore:.*frozen, they adapt nothing")
def test_gates_are_measured_without_padding(task, scope) -> None:
    texts = batch(task, length=9)
    singles = [alone(texts, row) for row in range(2)]
    for measure in (foura.effective_rank, foura.freeze_gates):
        found = measure(adapted(task, scope), [texts])
        assert found == pytest.approx(measure(adapted(task, scope), singles))
    assert set(found.values()) != {5}


@QUIET
def test_a_mask_may_be_given_by_position() -> None:
    for task in (None, "SEQ_CLS"):
        model, texts = adapted(task), batch(task)
        torch.testing.assert_close(first(model(*texts.values())), first(model(**texts)), rtol=0, atol=0)
        assert list(inspect.signature(base(task)[0].forward).parameters)[:2] == list(texts)


@QUIET
@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_2_SEQ_LM", None])
def test_generation_heeds_padding(task) -> None:
    model = adapted("CAUSAL_LM" if task is None else task)
    texts = batch(None)
    if task != "SEQ_2_SEQ_LM":  # texts that are written on end where they are written on
        texts = {name: value.flip(1) for name, value in texts.items()}
    options = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    together = torch.stack(model.generate(**texts, **options, pad_token_id=0).logits)
    for row in range(2):
        single = torch.stack(model.generate(**alone(texts, row), **options, pad_token_id=0).logits)
        torch.testing.assert_close(together[0, row], single[0, 0], rtol=0, atol=1e-8)


@QUIET
@pytest.mark.parametrize("task", ["SEQ_CLS", None])
def test_a_call_without_a_mask_keeps_that_of_the_context(task) -> None:
    model, texts = adapted(task), batch(task)
    open_eyed = {name: value for name, value in texts.items() if name == "input_ids"}
    gate = model.get_submodule(f"base_model.model.{'' if task is None else 'bert.'}pooler.dense").foura_gate["default"]
    seen = []
    gate.register_forward_pre_hook(lambda gate, _: seen.append(gate.padding_mask))
    with foura.attention_mask(model, texts["attention_mask"]):
        model(**open_eyed)
        model(**open_eyed, attention_mask=None)
        model(**open_eyed, attention_mask=torch.ones(2, 7))
        model(**open_eyed)
    model(**open_eyed)
    assert [None if mask is None else mask.sum().item() for mask in seen] == [12, 12, 14, 12, None]


class Net(nn.Module):
    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.checkpointed = nn.Linear(8, 8), nn.Linear(8, 3), checkpointed

    def forward(self, x: Tensor) -> Tensor:
        block = lambda h: self.one(h).tanh()  # noqa: E731
        return self.two(checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x))


def bare_net(checkpointed: bool = False) -> nn.Module:
    """A model that has FouRA adapters without PEFT's wrapper."""
    torch.manual_seed(0)
    config = FouraConfig(r=4, foura_alpha=16, target_modules=["one", "two"], gate="adaptive", init_weights=False)
    return inject_adapter_in_model(config, Net(checkpointed)).double()


@pytest.fixture
def padded() -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randn(3, 6, 8, dtype=torch.float64), torch.arange(6) < torch.tensor([[2], [4], [6]])


def test_a_training_step_leaves_no_mask_for_later_calls(padded) -> None:
    x, mask = padded
    with torch.no_grad():
        plain = bare_net()(x)
    model = bare_net()
    for again in (model.eval, model.train):
        with foura.attention_mask(model.train(), mask):
            loss = model(x).sum()
        loss.backward()
        torch.testing.assert_close(again()(x), plain, rtol=0, atol=1e-12)


def test_an_error_leaves_no_mask(padded) -> None:
    x, mask = padded
    model = bare_net()
    plain = model(x)
    with pytest.raises(RuntimeError), foura.attention_mask(model, mask):
        model(x[..., :5])
    torch.testing.assert_close(model(x), plain, rtol=0, atol=0)


def test_recomputation_after_one_call_has_its_mask(padded) -> None:
    x, mask = padded

    def gradients(checkpointed: bool) -> list[Tensor]:
        model = bare_net(checkpointed)
        with foura.attention_mask(model, mask):
            loss = model(x).square().sum()
        loss.backward()
        with foura.attention_mask(model, mask.flip(0)):
            model(x).square().sum().backward()
        model(x).square().sum().backward()  # without a mask
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    for one, other in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_mask_ends_with_its_call_whatever_another_thread_does(padded) -> None:
    x, mask = padded
    model, inside, ended = bare_net().eval(), threading.Event(), threading.Event()

    def other() -> None:
        with foura.attention_mask(model, mask.flip(0)):
            inside.set()
            ended.wait(60)

    thread = threading.Thread(target=other)
    with foura.attention_mask(model, mask):
        thread.start()
        assert inside.wait(60)
    ended.set()
    thread.join()
    assert all(module.padding_mask is None for module in model.modules() if isinstance(module, Gate))
    with foura.attention_mask(model, mask), foura.attention_mask(model, None):
        pass
    assert torch.equal(model(x), bare_net().eval()(x))


def test_a_gate_that_was_pickled_before_masks_were_kept_works(padded) -> None:
    model = bare_net()
    for module in model.modules():
        if isinstance(module, Gate):
            vars(module).pop("kept_mask", None)
    assert torch.equal(model(padded[0]), bare_net()(padded[0]))


def test_beams_of_mixed_adapters_have_the_padding_of_their_text() -> None:
    """Two texts with two beams each; the rows of one adapter are as many as the texts."""
    layer = bare_net().one
    seen = []
    layer.foura_gate["default"].register_forward_hook(lambda gate, inputs, _: seen.append(gate.mask_for(inputs[0])))
    mask = torch.tensor([[True, True, True], [True, False, False]])
    with foura.attention_mask(layer, mask):
        layer._mixed_delta("default", torch.randn(4, 3, 8, dtype=torch.float64), [1, 2])
        layer._mixed_delta("default", torch.randn(3, 3, 8, dtype=torch.float64), [0, 1])
    assert torch.equal(seen[0], mask) and seen[1] is None


def test_a_gate_of_one_vector_per_sample_has_no_padding() -> None:
    """Whose rank may happen to be the number of tokens."""
    gate = bare_net().one.foura_gate["default"]
    with foura.attention_mask(gate, torch.ones(3, 4)):
        assert gate.mask_for(torch.randn(3, 4)) is None
        assert gate.mask_for(torch.randn(3, 4, 4)) is not None


@QUIET
@pytest.mark.parametrize("task", ["SEQ_CLS", None])
def test_a_compiled_step_heeds_padding(task) -> None:
    model, texts = adapted(task).train(), batch(task)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    bare = {"input_ids": texts["input_ids"]}
    torch.testing.assert_close(first(compiled(**texts)), first(model(**texts)))
    torch.testing.assert_close(first(compiled(**bare)), first(model(**bare)))


@pytest.mark.parametrize("kind", ["BartModel", "T5EncoderModel"])
def test_a_decoder_that_is_fed_with_the_text_itself_has_its_padding(kind) -> None:
    """BART without target texts shifts the text by one token; an encoder alone has no decoder."""
    import transformers

    torch.manual_seed(0)
    if kind == "BartModel":
        sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
        sizes |= {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "d_model": 16, "vocab_size": 64, "dropout": 0.0}
        model, layers = transformers.BartModel(transformers.BartConfig(**sizes)), r".*\.(q_proj|v_proj|fc1)"
    else:
        config = transformers.T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
        model, layers = transformers.T5EncoderModel(config), r".*\.(q|v|wo)"
    config = FouraConfig(
        r=4, foura_alpha=40, target_modules=layers, gate="adaptive", gate_form="sigmoid", init_weights=False
    )
    model = get_peft_model(model, config).double().eval()
    ids = torch.randint(3, 64, (2, 7))
    mask = (torch.arange(7) < torch.tensor([[5], [7]])).long()
    alone = model(input_ids=ids[:1, :5], attention_mask=mask[:1, :5]).last_hidden_state[0]
    together = model(input_ids=ids, attention_mask=mask).last_hidden_state[0, :5]
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)


class Counting(TorchDispatchMode):
    """Counts the calls of `operation` within."""

    def __init__(self, operation: str) -> None:
        super().__init__()
        self.operation, self.calls = operation, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += func.overloadpacket._qualified_op_name == f"aten::{self.operation}"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("form", ["entropy", "sigmoid", "softmax"])
def test_real_tokens_are_found_once_for_all_layers_and_again_when_the_mask_changes(form) -> None:
    model, texts = adapted("FEATURE_EXTRACTION", form=form), batch("FEATURE_EXTRACTION")
    mask = texts["attention_mask"].bool()
    gates = sum(isinstance(module, Gate) for module in model.modules())
    with torch.inference_mode(), Counting("any") as counting, foura.attention_mask(model, mask):
        model(input_ids=texts["input_ids"])
    assert counting.calls == 1 < gates
    for module in model.train().modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with Counting("any") as counting, foura.attention_mask(model, mask):
        padded = first(model(input_ids=texts["input_ids"]))
        padded.sum().backward()  # what was made in inference mode would not be kept for it
    assert counting.calls == 0
    mask.fill_(True)
    with Counting("any") as counting, foura.attention_mask(model, mask):
        whole = first(model(input_ids=texts["input_ids"]))
    assert counting.calls == 1 and not torch.allclose(padded, whole)
    with torch.inference_mode(), foura.attention_mask(model, texts["attention_mask"].bool()):
        again = first(model(input_ids=texts["input_ids"]))  # a mask that counts no writes
    assert torch.allclose(padded, again)


def test_a_copy_of_a_gate_recomputes_nothing() -> None:
    model, texts = adapted("FEATURE_EXTRACTION").train(), batch("FEATURE_EXTRACTION")
    model(**texts)
    gates = [module for module in model.modules() if isinstance(module, Gate)]
    assert all(gate.kept_mask is not None for gate in gates)
    assert all(copy.deepcopy(gate).kept_mask is None for gate in gates)
