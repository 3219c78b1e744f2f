"""Encoders: where adapters and new heads go by structure, metrics by hand, and padding that changes nothing."""

import math

import pytest
import torch
import transformers
from omegaconf import OmegaConf
from peft import get_peft_model

from foura import FouraConfig
from foura.bundled.encoder import FOLDER
from foura.errors import UserError
from foura.families.encoder.backbone import build_encoder, start_at
from foura.families.encoder.data import SequenceData
from foura.families.encoder.task import SequenceTask
from foura.schema import BackboneConfig
from tests.helpers.config import composed

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SMALL |= {"vocab_size": 3072}
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 3072}
BERT = {"attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"}
BERT |= {"intermediate.dense", "output.dense"}
DISTILBERT = {"attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "ffn.lin1", "ffn.lin2"}
MODELS = {
    "bert": (lambda: transformers.BertModel(transformers.BertConfig(**SMALL)), BERT, ("classifier",)),
    "bert without a pooler": (
        lambda: transformers.BertModel(transformers.BertConfig(**SMALL), add_pooling_layer=False),
        BERT,
        ("bert.pooler", "classifier"),
    ),
    "distilbert": (
        lambda: transformers.DistilBertModel(transformers.DistilBertConfig(**DISTIL)),
        DISTILBERT,
        ("classifier", "pre_classifier"),
    ),
    "roberta": (
        lambda: transformers.RobertaModel(
            transformers.RobertaConfig(**SMALL, max_position_embeddings=66), add_pooling_layer=False
        ),
        BERT,
        ("classifier",),
    ),
    "deberta-v2": (
        lambda: transformers.DebertaV2Model(
            transformers.DebertaV2Config(**SMALL, relative_attention=True, pos_att_type=["c2p", "p2c"])
        ),
        None,
        ("classifier", "pooler"),
    ),
}


def config(**fields):
    return OmegaConf.structured(BackboneConfig(family="bert", **fields))


def saved(folder, model) -> str:
    """The folder of a model, with the bundled tokenizer."""
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", MODELS)
def test_adapters_go_on_every_layer_of_the_blocks_and_new_modules_are_found(kind, tmp_path) -> None:
    model, targets, new = MODELS[kind]
    backbone = build_encoder(config(name=saved(tmp_path, model())), ["a", "b", "c"])
    assert targets is None or set(backbone.targets) == targets
    assert backbone.new == new and backbone.head == "classifier"
    linear = [name for name, layer in backbone.model.named_modules() if isinstance(layer, torch.nn.Linear)]
    in_blocks = {name for name in linear if ".layer." in name}
    adapted = get_peft_model(
        backbone.model, FouraConfig(r=2, target_modules=backbone.targets, modules_to_save=list(new))
    )
    wrapped = {name.removeprefix("base_model.model.") for name, m in adapted.named_modules() if hasattr(m, "foura_A")}
    assert wrapped == in_blocks and wrapped
    ids = torch.tensor([[2, 30, 40, 3]])
    assert adapted(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.shape == (1, 3)


def test_a_head_for_other_classes_is_replaced_and_other_weights_are_refused(tmp_path) -> None:
    trained = transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL, num_labels=5))
    backbone = build_encoder(config(name=saved(tmp_path / "five", trained)), ["a", "b"])
    assert backbone.model.config.num_labels == 2 and backbone.new == ("classifier",)
    kept = backbone.model.state_dict()["bert.encoder.layer.0.output.dense.weight"]
    assert torch.equal(kept, trained.state_dict()["bert.encoder.layer.0.output.dense.weight"])
    folder = saved(
        tmp_path / "one", transformers.BertModel(transformers.BertConfig(**{**SMALL, "num_hidden_layers": 1}))
    )
    transformers.BertConfig(**SMALL).save_pretrained(folder)  # says two layers
    with pytest.raises(UserError, match="the weights are of another model: 16 that this one has are missing"):
        build_encoder(config(name=folder), ["a", "b"])


def test_a_regression_head_starts_at_the_mean_label() -> None:
    backbone = build_encoder(config(), None)
    start_at(backbone, 7.0)
    ids = torch.tensor([[2, 30, 40, 3], [2, 50, 60, 3]])
    with torch.no_grad():
        predicted = backbone.model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert predicted.shape == (2, 1)
    assert predicted.squeeze().tolist() == pytest.approx([7.0, 7.0], abs=1.0)


def test_a_tokenizer_without_padding_is_refused(tmp_path) -> None:
    folder = saved(tmp_path, transformers.BertModel(transformers.BertConfig(**SMALL)))
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match=r"the tokenizer has no padding token \(pad_token\)"):
        build_encoder(config(name=folder), ["a", "b"])


class Fixed(torch.nn.Module):
    """A model whose logits are given."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, input_ids, attention_mask):
        return type("Output", (), {"logits": self.logits})()


def task(logits, classes) -> SequenceTask:
    data = SequenceData(train=[], train_eval=[], validation=[], test=[], sizes={}, fingerprint="", classes=classes)
    return SequenceTask(Fixed(torch.tensor(logits)), data, composed("backbone=bert"))


def batch(labels) -> dict[str, torch.Tensor]:
    ids = torch.zeros(len(labels), 2, dtype=torch.long)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor(labels)}


def test_metrics_of_two_classes_by_hand() -> None:
    """Predicted 1 1 0 0 for 1 0 1 0: two of four are right, one true positive of two predicted and of two wanted."""
    judged = task([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]], ["a", "b"])
    judged.evaluate("test", batch([1, 0, 1, 0]))
    found = judged.results("test")
    right, wrong = torch.tensor([1.0, 0.0]).log_softmax(0).tolist()
    assert found["loss"] == pytest.approx(-(right + wrong) / 2)
    assert (found["acc"], found["f1"], found["mcc"]) == pytest.approx((0.5, 0.5, 0.0))


@pytest.mark.parametrize("labels", [[1, 1, 1, 0], [0, 0, 0, 0]])
def test_always_the_same_class_correlates_with_nothing(labels) -> None:
    """As scikit-learn and GLUE have it; torchmetrics' own is above 0.5 for the first and -1 for the second."""
    judged = task([[0.0, 1.0]] * 4, ["a", "b"])
    judged.evaluate("test", batch(labels))
    assert judged.results("test")["mcc"] == 0.0


def test_matthews_correlation_of_unequal_classes_by_hand() -> None:
    """Predicted 1 1 1 0 for 1 1 0 0: (tp tn - fp fn) / sqrt((tp + fp)(tp + fn)(tn + fp)(tn + fn)) = 2 / sqrt(3 2 2 1)."""
    judged = task([[0.0, 1.0]] * 3 + [[1.0, 0.0]], ["a", "b"])
    judged.evaluate("test", batch([1, 1, 0, 0]))
    found = judged.results("test")
    assert found["mcc"] == pytest.approx(2 / math.sqrt(12))
    assert found["f1"] == pytest.approx(2 * (2 / 3) / (2 / 3 + 1))  # of class 1: precision 2 / 3, recall 1


def test_f1_of_three_classes_is_the_mean_over_them() -> None:
    """Predicted 0 0 1 2 for 0 1 1 2: 2 / 3, 2 / 3 and 1."""
    judged = task(torch.eye(3)[[0, 0, 1, 2]].tolist(), ["a", "b", "c"])
    judged.evaluate("test", batch([0, 1, 1, 2]))
    assert judged.results("test")["f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)


def test_metrics_of_numbers_by_hand() -> None:
    judged = task([[1.0], [2.0], [4.0]], None)
    judged.evaluate("test", batch([0.0, 5.0, 10.0]))
    found = judged.results("test")
    assert found["loss"] == pytest.approx((1 + 9 + 36) / 3)
    assert found["spearman"] == pytest.approx(1.0, abs=1e-5)
    # deviations (-4/3, -1/3, 5/3) and (-5, 0, 5)
    assert found["pearson"] == pytest.approx(15 / (14 / 3 * 50) ** 0.5)


def test_a_constant_prediction_has_correlation_zero() -> None:
    judged = task([[1.0], [1.0], [1.0]], None)
    judged.evaluate("test", batch([0.0, 5.0, 10.0]))
    found = judged.results("test")
    assert found["pearson"] == found["spearman"] == 0.0


@pytest.mark.parametrize("transform", ["dct", "dft"])
def test_padding_changes_nothing(transform) -> None:
    """A gate over the sequence leaves padded tokens out, so that a text has the same scores alone and in a batch."""
    backbone = build_encoder(config(), ["a", "b", "c"])
    fields = {"gate": "adaptive", "gate_scope": "sequence", "init_weights": False, "target_modules": backbone.targets}
    model = get_peft_model(backbone.model, FouraConfig(r=4, transform=transform, **fields)).eval()
    texts = ["a short text", "a text that is a good deal longer than the other"]
    together, alone = (backbone.tokenizer(part, padding=True, return_tensors="pt") for part in (texts, texts[:1]))
    with torch.no_grad():
        one, two = (
            model(input_ids=part["input_ids"], attention_mask=part["attention_mask"]).logits
            for part in (alone, together)
        )
    torch.testing.assert_close(two[:1], one, rtol=1e-4, atol=1e-5)


# -- token types


@pytest.mark.parametrize(
    ("kind", "typed"), [("bert", True), ("distilbert", False), ("deberta-v2", False), ("bundled", False)]
)
def test_models_with_token_types_are_told_by_their_config_and_inputs(kind, typed, tmp_path) -> None:
    named = {} if kind == "bundled" else {"name": saved(tmp_path, MODELS[kind][0]())}
    assert build_encoder(config(**named), ["a", "b"]).typed is typed


def test_token_types_reach_the_model_in_training(tmp_path) -> None:
    """The loss is that of the model called with them by hand, and another one than without."""
    backbone = build_encoder(config(name=saved(tmp_path, MODELS["bert"][0]())), ["a", "b"])
    backbone.model.eval()
    with torch.no_grad():
        backbone.model.bert.embeddings.token_type_embeddings.weight[1].normal_()
    cfg = composed("backbone=bert")
    task = SequenceTask(backbone.model, SequenceData(train=[], train_eval=[], validation=[], test=[], classes=["a", "b"],
                        sizes={}, fingerprint="", collate=None), cfg)  # fmt: skip
    ids, types = torch.arange(10)[None], torch.tensor([[0] * 6 + [1] * 4])
    batch = {
        "input_ids": ids,
        "token_type_ids": types,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.tensor([1]),
    }
    logits = backbone.model(input_ids=ids, token_type_ids=types).logits
    expected = torch.nn.functional.cross_entropy(logits, batch["labels"])
    torch.testing.assert_close(task.loss(batch), expected)
    without = {key: value for key, value in batch.items() if key != "token_type_ids"}
    assert abs(float(task.loss(without) - expected)) > 1e-5
