"""`openk2 train tokenizer`, and recipes that use what it makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiktoken.load
from typer.testing import CliRunner

from openk2.cli.train import app
from openk2.config import preset
from openk2.errors import ConfigError, TokenizerError
from openk2.tokenizer import Tokenizer
from openk2.training import vocabulary
from openk2.training.recipe import Recipe, StageConfig, TokenizerConfig
from openk2.training.schedule import WarmupStableDecay
from openk2.training.vocabulary import make_tokenizer

TEXT = "The weather in Paris is fine on 2025-11-04, and the weather in Oslo was not on 2025-11-05.\n"


def learn(folder: Path, *options: str, text: str = TEXT * 20) -> object:
    (folder / "a.txt").write_text(text)
    return CliRunner().invoke(app, ["tokenizer", str(folder / "*.txt"), "--output", str(folder / "vocab"), *options])


def test_a_vocabulary_is_made_from_files(tmp_path: Path) -> None:
    result = learn(tmp_path, "--vocab-size", "540")
    assert result.exit_code == 0 and "540 tokens from 1 documents" in result.output  # type: ignore[attr-defined]
    theirs = tiktoken.load.load_tiktoken_bpe(str(tmp_path / "vocab" / "tiktoken.model"))
    assert len(theirs) == 540 - 256 and sorted(theirs.values()) == list(range(284))
    assert any(len(token) > 1 and token.startswith(b" ") for token in theirs), "any merge is allowed"
    tokenizer = Tokenizer.from_folder(tmp_path / "vocab")
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT and len(ids) < len(TEXT) / 1.5
    assert tokenizer.specials["<|im_end|>"] == 284 + 2


def test_merges_for_copying_keep_digits_and_blanks_apart(tmp_path: Path) -> None:
    assert learn(tmp_path, "--vocab-size", "530", "--merges", "copy").exit_code == 0  # type: ignore[attr-defined]
    tokenizer = Tokenizer.from_folder(tmp_path / "vocab")
    pieces = [tokenizer.token_bytes(i) for i in range(tokenizer.n_ranks)]
    assert all(len(p) == 1 or not (p[:1] == b" " or p.isdigit()) for p in pieces)


@pytest.mark.parametrize(
    ("options", "text", "message"),
    [
        (("--vocab-size", "5000"), TEXT, "give only"),
        (("--vocab-size", "540"), "", "is empty"),
        (("--vocab-size", "540", "--merges", "all"), TEXT, "any or copy"),
    ],
)
def test_what_cannot_be_made_leaves_nothing(tmp_path: Path, options: tuple[str, ...], text: str, message: str) -> None:
    result = learn(tmp_path, *options, text=text)
    assert message in str(result.exception) and not (tmp_path / "vocab").exists()  # type: ignore[attr-defined]


def test_a_cut_while_writing_leaves_no_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(ranks: object, path: Path) -> None:
        path.write_bytes(b"AA== 0\n")
        raise KeyboardInterrupt

    monkeypatch.setattr(vocabulary, "save_ranks", cut)
    with pytest.raises(KeyboardInterrupt):
        vocabulary.write_tokenizer({bytes([i]): i for i in range(256)}, tmp_path)
    assert not (tmp_path / "tiktoken.model").exists()


def test_a_recipe_takes_the_folder(tmp_path: Path) -> None:
    learn(tmp_path, "--vocab-size", "540")
    recipe = Recipe(
        model=replace(preset("nano"), vocab_size=540),
        schedule=WarmupStableDecay(warmup_tokens=1, stable_tokens=1, decay_tokens=1),
        stages=(StageConfig(batch_tokens=10),),
        tokenizer=TokenizerConfig(folder=str(tmp_path / "vocab")),
    )
    made = make_tokenizer(recipe, tmp_path / "run")
    assert made.encode(TEXT) == Tokenizer.from_folder(tmp_path / "vocab").encode(TEXT)
    assert (tmp_path / "run" / "tiktoken.model").exists()
    with pytest.raises(ConfigError, match="540 tokens, the model 600"):
        make_tokenizer(replace(recipe, model=replace(recipe.model, vocab_size=600)), tmp_path / "other")
    missing = replace(recipe, tokenizer=TokenizerConfig(folder=str(tmp_path)))
    with pytest.raises(TokenizerError, match=r"no tiktoken\.model"):
        make_tokenizer(missing, tmp_path / "third")
    with pytest.raises(ConfigError, match=r"any or copy"):
        TokenizerConfig(merges="most")
