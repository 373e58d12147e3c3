"""Clips of nano's world for the page, and which models the page calls nano."""

import shutil
import threading

from transformers import AutoConfig

from pllava import NANO
from pllava.demo import worlds
from pllava.demo.page import is_nano
from pllava.video_decoding_pllava import load_frames


def test_a_clip_can_be_read_while_another_visitor_rolls_it_again(tmp_path):
    clip = worlds.roll(tmp_path, 40)
    expected, stop, read = load_frames(clip.path)[0], threading.Event(), []

    def read_again_and_again():
        while not stop.is_set():
            read.append((load_frames(clip.path)[0] == expected).all())

    reader = threading.Thread(target=read_again_and_again)
    reader.start()
    try:
        for _ in range(20):
            worlds.roll(tmp_path, 40)
    finally:
        stop.set()
        reader.join()
    assert all(read) and len(read) > 1
    assert [path.name for path in tmp_path.iterdir()] == ["world-40.mp4"]


def test_a_copy_of_nano_is_nano_and_another_model_is_not(tmp_path, checkpoint):
    shutil.copytree(NANO, tmp_path / "copy")
    assert is_nano(AutoConfig.from_pretrained(tmp_path / "copy"))
    assert not is_nano(AutoConfig.from_pretrained(checkpoint))
