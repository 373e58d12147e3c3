"""Clips of nano's world for the page, and which models the page calls nano."""

import shutil
import threading

from transformers import AutoConfig

from pllava import NANO
from pllava.demo import worlds
from pllava.demo.page import is_nano
from pllava.video_decoding_pllava import load_frames
from pllava.video_source_pllava import VideoDecodeError


def test_a_clip_can_be_read_while_another_visitor_rolls_it_again(tmp_path):
    clip = worlds.roll(tmp_path, 40)
    expected, stop, read = len(load_frames(clip.path)[0]), threading.Event(), []

    def read_again_and_again():
        while not stop.is_set():
            try:
                read.append(len(load_frames(clip.path)[0]))
            except VideoDecodeError as error:
                read.append(str(error))

    reader = threading.Thread(target=read_again_and_again)
    reader.start()
    try:
        for _ in range(20):
            worlds.roll(tmp_path, 40)
    finally:
        stop.set()
        reader.join()
    assert set(read) == {expected}
    assert [path.name for path in tmp_path.iterdir()] == ["world-40.mp4"]


def test_a_copy_of_nano_is_nano_and_another_model_is_not(tmp_path, checkpoint):
    shutil.copytree(NANO, tmp_path / "copy")
    assert is_nano(AutoConfig.from_pretrained(tmp_path / "copy"))
    assert not is_nano(AutoConfig.from_pretrained(checkpoint))
