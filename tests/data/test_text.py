import json
import pickle
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from accel_train.data.text import SPECIAL_TOKENS, caption_vocabulary, open_tokenizer, read_vocabulary, save_tokenizer
from accel_train.errors import UserError

CAPTIONS = ["红色的花", "一只猫 cat", "红花", "Cats, cat", "tac"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tokenizer(caption_vocabulary(CAPTIONS, 100), tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_vocabulary_goes_from_special_to_frequent_to_rare() -> None:
    tokens = caption_vocabulary(CAPTIONS, 100)
    assert tuple(tokens[:5]) == SPECIAL_TOKENS
    assert len(set(tokens)) == len(tokens)
    assert {"红", "花", "猫", "c", "##a", "##t", ",", "cat", "cats"} <= set(tokens)
    assert "红色" not in tokens and "Cats" not in tokens
    assert tokens.index("c") < tokens.index("红") < tokens.index("cat") < tokens.index("cats")
    assert caption_vocabulary(CAPTIONS, 8) == tokens[:8]
    assert caption_vocabulary(reversed(CAPTIONS), 100) == tokens


def test_the_folder_loads_with_transformers_and_gives_the_same_ids(folder: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(folder))
    ours = open_tokenizer(str(folder), 10)
    assert len(theirs) == ours.vocab_size == len(read_vocabulary(folder / "vocab.txt"))
    for text in ["红色的花", "Cats 猫，狗", "tact", "🙂", "红" * 30]:
        wanted = theirs(text, padding="max_length", truncation=True, max_length=10)
        input_ids, attention_mask = ours.encode(text)
        assert input_ids.tolist() == wanted["input_ids"]
        assert attention_mask.tolist() == wanted["attention_mask"]


def test_a_vocabulary_file_is_a_bert_tokenizer(folder: Path) -> None:
    tokenizer = open_tokenizer(str(folder / "vocab.txt"), 8)
    input_ids, attention_mask = tokenizer.encode("红花 CAT")
    tokens = read_vocabulary(folder / "vocab.txt")
    assert [tokens[index] for index in input_ids] == ["[CLS]", "红", "花", "cat", "[SEP]", "[PAD]", "[PAD]", "[PAD]"]
    assert attention_mask.tolist() == [1] * 5 + [0] * 3
    assert input_ids.dtype == attention_mask.dtype == torch.int64


def test_long_captions_keep_their_last_special_token(folder: Path) -> None:
    tokenizer = open_tokenizer(str(folder), 5)
    input_ids, attention_mask = tokenizer.encode("红" * 20)
    assert input_ids[0] == 2 and input_ids[-1] == 3 and len(input_ids) == 5
    assert attention_mask.tolist() == [1] * 5


def test_chinese_clip_cleaning_straightens_quotes(tmp_path: Path) -> None:
    tokens = [*SPECIAL_TOKENS, "红", '"', "“", "”"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    plain = open_tokenizer(str(tmp_path / "vocab.txt"), 6).encode("“红”")[0]
    cleaned = open_tokenizer(str(tmp_path / "vocab.txt"), 6, cleaning="chinese_clip").encode("“红”")[0]
    assert plain.tolist() == [2, 7, 5, 8, 3, 0]
    assert cleaned.tolist() == [2, 6, 5, 6, 3, 0]


# What the original trainer's own tokenizer (cn_clip/clip/bert_tokenizer.py) makes of each caption with these tokens:
# [PAD] 0 [UNK] 1 [CLS] 2 [SEP] 3 [MASK] 4.
ORIGINAL_TOKENS = [*SPECIAL_TOKENS, "红", "花", "a", "##a", "##b", '"', ",", "，", "cafe", "[", "]", "sep", "１"]
ORIGINAL_TOKENS += ["½", "i", "##aa"]
ORIGINAL_IDS = {
    "红花": [2, 5, 6, 3],
    "“红”": [2, 10, 5, 10, 3],
    "‘红’": [2, 1, 5, 1, 3],
    "CAFÉ café cafe\u0301": [2, 13, 13, 13, 3],
    "红Aab花": [2, 5, 7, 8, 9, 6, 3],
    "a，a,a": [2, 7, 12, 7, 11, 7, 3],
    "[SEP]": [2, 14, 16, 15, 3],
    "a\u0000\u200b\ufeff\ufffda": [2, 7, 8, 3],
    "a\u3000a\u00a0a\ta\u2028a": [2, 7, 7, 7, 7, 7, 3],
    "１½": [2, 1, 3],
    "１ ½": [2, 17, 18, 3],
    "İ": [2, 19, 3],
    "😀👍🏽": [2, 1, 3],
    "a\ue000a 红\uf8ff": [2, 1, 5, 1, 3],
    "\U000f0000红": [2, 1, 5, 3],
    "a\U0002b820a": [2, 7, 1, 7, 3],
    "a" * 101: [2, 7, *[20] * 49, 3],
    "a" * 200: [2, 7, *[20] * 49, 3],
    "a" * 201: [2, 1, 3],
    " \u200b\n": [2, 3],
    "红" * 80: [2, *[5] * 50, 3],
}


@pytest.mark.parametrize("text", list(ORIGINAL_IDS), ids=lambda text: ascii(text)[:20])
def test_chinese_clip_cleaning_gives_the_originals_ids(tmp_path: Path, text: str) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(ORIGINAL_TOKENS), encoding="utf-8")
    tokenizer = pickle.loads(pickle.dumps(open_tokenizer(str(tmp_path / "vocab.txt"), 52, cleaning="chinese_clip")))
    wanted = ORIGINAL_IDS[text]
    input_ids, attention_mask = tokenizer.encode(text)
    assert input_ids.tolist() == wanted + [0] * (52 - len(wanted))
    assert attention_mask.tolist() == [1] * len(wanted) + [0] * (52 - len(wanted))


def test_without_cleaning_words_are_cut_as_transformers_cuts_them(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(ORIGINAL_TOKENS), encoding="utf-8")
    tokenizer = open_tokenizer(str(tmp_path / "vocab.txt"), 52)
    assert tokenizer.encode("a" * 101)[0][:3].tolist() == [2, 1, 3]
    assert tokenizer.encode("a\ue000a")[0][:4].tolist() == [2, 7, 8, 3]


def test_masking_hits_only_content_and_at_its_rate(folder: Path) -> None:
    tokenizer = open_tokenizer(str(folder), 50, mask_tokens=0.25)
    caption = "红" * 40
    plain = tokenizer.encode(caption)[0]
    share = []
    for seed in range(100):
        masked, attention_mask = tokenizer.encode(caption, mask_share=0.25, generator=random.Random(seed))
        changed = masked != plain
        assert masked[changed].eq(tokenizer.mask_id).all()
        assert not changed[0] and not changed[41:].any()
        assert attention_mask.sum() == 42
        share.append(changed.sum().item() / 40)
    assert abs(sum(share) / 100 - 0.25) < 0.03
    again = [tokenizer.encode(caption, mask_share=0.25, generator=random.Random(3))[0] for _ in range(2)]
    assert torch.equal(*again)


def sentence_tokenizer(folder: Path, settings: dict[str, object]) -> Path:
    """A tokenizer as SigLIP's: padded with its end token, no attention mask among the inputs."""
    tokenizer = Tokenizer(models.WordLevel({"</s>": 1, "<unk>": 2, "cat": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_siglip_attends_to_padding(tmp_path: Path) -> None:
    pad = {"content": "</s>", "special": True}
    folder = sentence_tokenizer(tmp_path / "siglip", {"pad_token": pad, "model_input_names": ["input_ids"]})
    tokenizer = open_tokenizer(str(folder), 5)
    input_ids, attention_mask = tokenizer.encode("cat dog")
    assert input_ids.tolist() == [3, 2, 1, 1, 1]
    assert attention_mask.tolist() == [1] * 5
    assert tokenizer.vocab_size == 4  # ids up to 3, though there are only three tokens


def test_old_folders_are_converted_by_transformers(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    letters = ["c", "a", "t", "c</w>", "a</w>", "t</w>", "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(letters)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    input_ids, attention_mask = open_tokenizer(str(tmp_path), 5).encode("cat")
    wanted = CLIPTokenizer.from_pretrained(str(tmp_path))("cat", padding="max_length", max_length=5)
    assert input_ids.tolist() == wanted["input_ids"] == [8, 7, 9, 9, 9]
    assert attention_mask.tolist() == wanted["attention_mask"]


def test_pickles(folder: Path) -> None:
    tokenizer = pickle.loads(pickle.dumps(open_tokenizer(str(folder), 8)))
    assert torch.equal(tokenizer.encode("红花")[0], open_tokenizer(str(folder), 8).encode("红花")[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b"[PAD]\n[UNK]\na\n", r"lacks \[CLS\], \[SEP\], \[MASK\]"),
        (b"", "lacks"),
        ("\n".join([*SPECIAL_TOKENS, "a", "b", "a"]).encode(), "1 tokens come twice, the first is 'a'"),
    ],
)
def test_damaged_vocabulary_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_tokenizer(str(tmp_path / "vocab.txt"), 8)


def test_damaged_folders(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="neither a folder"):
        open_tokenizer(str(tmp_path / "nothing"), 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        open_tokenizer(str(tmp_path / "empty"), 8)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer"):
        open_tokenizer(str(folder), 8)
    with pytest.raises(UserError, match="names no pad_token"):
        open_tokenizer(str(sentence_tokenizer(tmp_path / "no_pad", {})), 8)
    with pytest.raises(UserError, match="padding token '<pad>' is not in its vocabulary"):
        open_tokenizer(str(sentence_tokenizer(tmp_path / "odd_pad", {"pad_token": "<pad>"})), 8)
    with pytest.raises(UserError, match="no mask token"):
        open_tokenizer(str(sentence_tokenizer(tmp_path / "no_mask", {"pad_token": "</s>"})), 8, mask_tokens=0.1)
    (tmp_path / "no_mask" / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(UserError, match="a list where settings"):
        open_tokenizer(str(tmp_path / "no_mask"), 8)
