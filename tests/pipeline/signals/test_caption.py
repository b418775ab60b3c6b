"""The caption signal counts characters and words as Unicode has them."""

from pipeline.pair_shard import Pair
from pipeline.signals.caption import CaptionSignal
from schemas.record import caption_sha256
from schemas.signals import CAPTION


def test_characters_words_and_digest() -> None:
    captions = ["a red  box", "", "日本 の箱"]
    table = CaptionSignal().measure([Pair(str(i), b"", text) for i, text in enumerate(captions)])
    assert table.schema.equals(CAPTION.arrow())
    found = table.to_pydict()
    assert found["caption_characters"] == [10, 0, 5]
    assert found["caption_words"] == [3, 0, 2]
    assert found["caption_sha256"] == [caption_sha256(text) for text in captions]
