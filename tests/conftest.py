"""Fixtures for many tests: a tiny model made from arithmetic texts, makers of labelled solutions, and vLLM.

vLLM has an environment of its own, `.venv-vllm`, which `make test` creates (STEPMARK_VLLM names another one)."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

# One thread for each process, here and in the processes that tests start. This must be set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import HealthCheck, settings

from seeds import SEED
from stepmark.models import checkpoints
from stepmark.plugins import registry
from stepmark.text import steps
from stepmark.types import Grade, LabelledSolution, Solution, StepLabel, Verdict

# No deadlines: machines differ, and the first example of a test may load a model.
settings.register_profile(
    "stepmark", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("stepmark")

TEXTS = 150


@pytest.fixture(scope="session")
def problems():
    """Arithmetic problems with correct demonstrations."""
    return registry.load("task", "arithmetic").load("train", TEXTS).problems


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, problems):
    """Directory of a tiny Llama with random weights and its tokenizer. Read-only: copy it to change it."""
    shape = checkpoints.Shape(hidden=16, heads=2, kv_heads=1, layers=2, vocab=400, max_length=256)
    texts = [f"{p.question}\n{p.reference}" for p in problems]
    return str(checkpoints.create(tmp_path_factory.mktemp("tiny") / "model", texts, shape, SEED))


@pytest.fixture(scope="session")
def model_of(tmp_path_factory):
    """Architecture name -> checkpoint directory, created once."""
    import architectures

    directory = tmp_path_factory.mktemp("models")
    created: dict[str, str] = {}

    def make(name: str) -> str:
        if name not in created:
            created[name] = str(architectures.create(directory / name, name))
        return created[name]

    return make


@pytest.fixture(scope="session")
def entailer(tmp_path_factory, problems):
    """Directory of a tiny BERT with three labels for pairs of texts. It reads 40 tokens. Its weights are random but
    large, so its probabilities are far from even. Read-only."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words.train_from_iterator([p.reference for p in problems], trainers.WordLevelTrainer(special_tokens=marks))
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), marks, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=40, **special)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        id2label={0: "contradiction", 1: "Entailment", 2: "neutral"},
        label2id={"contradiction": 0, "Entailment": 1, "neutral": 2},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # not SEED: these weights are given, and no result of a training
        model = BertForSequenceClassification(config)
        for name, weights in model.named_parameters():
            if weights.dim() > 1:
                torch.nn.init.normal_(weights, std=3.0 if "classifier" in name else 0.4)
    path = tmp_path_factory.mktemp("entailer") / "model"
    checkpoints.save(path, model, tokenizer)
    return str(path)


@pytest.fixture(scope="session")
def solve():
    """text -> a solution, split by lines."""

    def make(text, problem="p", sample=0, **fields):
        return Solution(f"{problem}#{sample}", problem, sample, text, steps.split(text), **fields)

    return make


@pytest.fixture(scope="session")
def labelled(solve):
    """(problem, text, share of correct rollouts per step; None: no evidence) -> a training example."""

    def make(problem, text, shares, verdict=Verdict.CORRECT, of=10, sample=0):
        labels = tuple(
            StepLabel(0, 0, truncated=1) if share is None else StepLabel(round(share * of), of) for share in shares
        )
        return problem, LabelledSolution(solve(text, problem.id, sample), Grade(verdict, "made"), labels)

    return make


@pytest.fixture(scope="session")
def examples(problems, labelled):
    """Eighteen examples whose steps have all kinds of labels: right, wrong, in between, unknown."""
    shares = (1.0, 0.0, 0.9, None, 0.3)
    labelled_examples = []
    for i, p in enumerate(problems[:18]):
        count = len(steps.split(p.reference))
        verdict = Verdict.CORRECT if i % 3 else Verdict.INCORRECT
        labelled_examples.append(labelled(p, p.reference, [shares[(i + k) % 5] for k in range(count)], verdict))
    return labelled_examples


@dataclass(frozen=True)
class VLLM:
    """The environment of vLLM, with settings for a CPU that other processes use too."""

    python: str  # the interpreter that can import it
    environment: dict[str, str]  # variables for its process


@pytest.fixture(scope="session")
def vllm(request):
    """The environment with vLLM. Skips the test with the reason if there is none."""
    place = Path(os.environ.get("STEPMARK_VLLM") or request.config.rootpath / ".venv-vllm")
    python = place / "bin" / "python"
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    if not python.exists() or subprocess.run([python, "-c", code]).returncode:
        pytest.skip(f"NO REAL SERVER: there is no vLLM in {place}. {_why_not(place)}")
    # Without this process's variables for coverage and path.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "PYTHON", "COV_"))}
    added = {
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "TORCHDYNAMO_DISABLE": "1",  # no compilation: the first request would wait for a C++ compiler
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in process means in one process
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return VLLM(str(python), inherited | added)


def _why_not(place):
    log = place.with_name(f"{place.name}.log")
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    errors = [line for line in lines if line.startswith("ERROR")] or [line for line in lines if line]
    return (
        f"The last line of its installation log: {errors[-1]}"
        if errors
        else "`make server` installs it, and so does `make test`."
    )
