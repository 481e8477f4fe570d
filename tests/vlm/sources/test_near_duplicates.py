import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from vlm.sources import pictures
from vlm.sources.near_duplicates import NearDuplicates, Swallowed
from vlm.sources.splits import Picture


def scene(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A picture of large coloured shapes, width x height."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def picture(index: int, data: bytes, label: str = "cat") -> Picture:
    return Picture(index, f"{index:03d}.jpg", label, pictures.inspect(data, perceptual=True))


def clusters(*images: Image.Image) -> list[set[int]]:
    """The clusters of pictures, by their positions, next to many others, so that no cluster is most of the class."""
    others = [picture(100 + i, jpeg(scene(100 + i))) for i in range(40)]
    shown = [*(picture(i, jpeg(image)) for i, image in enumerate(images)), *others]
    near = NearDuplicates()
    near.add(shown)
    found, swallowed = near.clusters(shown)
    assert not swallowed
    sets: dict[int, set[int]] = {}
    for index, number in found.items():
        sets.setdefault(number, set()).add(index)
    return sorted(sets.values(), key=min)


CHANGES = {
    "smaller": lambda image: image.resize((96, 72)),
    "larger": lambda image: image.resize((400, 300)),
    "compressed": lambda image: Image.open(io.BytesIO(jpeg(image, 25))),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.8),
    "grey": lambda image: image.convert("L").convert("RGB"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_picture_and_the_same_one_changed_a_little_are_near_duplicates(change):
    assert clusters(scene(0), change(scene(0)), scene(1)) == [{0, 1}]


CHANGED_MUCH = {
    "cut": lambda image: image.crop((30, 0, 160, 120)),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "turned": lambda image: image.transpose(Image.Transpose.ROTATE_90),
}


@pytest.mark.parametrize("change", CHANGED_MUCH.values(), ids=CHANGED_MUCH)
def test_the_threshold_is_strict(change):
    assert clusters(scene(0), change(scene(0))) == []


def test_small_and_blank_pictures_are_compared_with_nothing():
    small = scene(0).resize((63, 63))
    assert clusters(small, small.resize((62, 62)), Image.new("RGB", (99, 99)), Image.new("RGB", (98, 98))) == []
    assert pictures.inspect(jpeg(scene(0))).perceptual_hash is None, "not asked for"


def test_pictures_may_be_added_in_any_parts_and_order(monkeypatch):
    shown = [picture(3 * i + j, jpeg(scene(i), 95 - 10 * j)) for i in range(12) for j in range(3)]
    expected = {frozenset(range(3 * i, 3 * i + 3)) for i in range(12)}
    monkeypatch.setattr("vlm.sources.near_duplicates._AT_ONCE", 50)  # a few rows at a time
    monkeypatch.setattr("vlm.sources.near_duplicates._MOST_LINKS", 3)
    for parts in ([shown], [shown[::-1]], [shown[:5], shown[5:6], [], shown[6:]]):
        near = NearDuplicates()
        for part in parts:
            near.add(part)
        found, _ = near.clusters(shown)
        sets: dict[int, set[int]] = {}
        for index, number in found.items():
            sets.setdefault(number, set()).add(index)
        assert {frozenset(members) for members in sets.values()} == expected


def test_a_cluster_of_most_of_a_class_is_no_cluster():
    """Ten of 16 cats look alike; two dogs are near duplicates and remain so."""
    cats = [picture(i, jpeg(scene(0), 90 - i)) for i in range(10)] + [
        picture(10 + i, jpeg(scene(1 + i))) for i in range(6)
    ]
    dogs = [picture(20 + i, jpeg(scene(20), 90 - i), "dog") for i in range(2)]
    dogs += [picture(22 + i, jpeg(scene(30 + i)), "dog") for i in range(3)]
    near = NearDuplicates()
    near.add([*cats, *dogs])
    found, swallowed = near.clusters([*cats, *dogs])
    assert set(found) == {20, 21}
    assert swallowed == [Swallowed("cat", 10, 16)]


def test_a_rare_class_does_not_end_the_protection_of_another_one():
    """Both pictures of a class look like 20 of the 60 roses, and all nine of another class look alike."""
    shown = [picture(i, jpeg(scene(0), 90 - i), "rose") for i in range(20)]
    shown += [picture(20 + i, jpeg(scene(1 + i)), "rose") for i in range(40)]
    shown += [picture(60 + i, jpeg(scene(0), 60 - i), "rare") for i in range(2)]
    shown += [picture(70 + i, jpeg(scene(99), 90 - i), "few") for i in range(9)]
    near = NearDuplicates()
    near.add(shown)
    found, swallowed = near.clusters(shown)
    assert swallowed == []
    assert len({found[i] for i in (*range(20), 60, 61)}) == 1
    assert len({found[i] for i in range(70, 79)}) == 1


def chained(index: int, bits: int) -> Picture:
    """A picture whose hash has so many bits set: the more these numbers differ, the less two pictures look alike."""
    hashed = ((1 << bits) - 1).to_bytes(32, "little")
    return Picture(index, f"{index}.jpg", "cat", pictures.Inspection(b"", b"", True, perceptual_hash=hashed))


@pytest.mark.parametrize("most_links", [0, 1, 1000])
def test_a_chain_is_one_cluster_wherever_it_is_cut(most_links, monkeypatch):
    """Each picture looks like the one before it only, so its link says nothing about the pictures before that one."""
    chain = [chained(i, 20 * i) for i in range(8)]
    monkeypatch.setattr("vlm.sources.near_duplicates._AT_ONCE", 1)
    monkeypatch.setattr("vlm.sources.near_duplicates._MOST_LINKS", most_links)
    for parts in ([chain], [chain[:3], chain[3:]], [[picture] for picture in chain]):
        near = NearDuplicates()
        for part in parts:
            near.add(part)
        found, _ = near.clusters(chain)
        assert len(found) == 8 and len(set(found.values())) == 1


def test_links_are_joined_before_there_are_too_many_of_them(monkeypatch):
    joined, join = [], NearDuplicates._join

    def count_links(near, links):
        joined.append(sum(len(ends) for ends, _ in links))
        join(near, links)

    monkeypatch.setattr("vlm.sources.near_duplicates._AT_ONCE", 1)  # a row at a time, with up to 11 links
    monkeypatch.setattr("vlm.sources.near_duplicates._MOST_LINKS", 20)
    monkeypatch.setattr(NearDuplicates, "_join", count_links)
    NearDuplicates().add([chained(i, 0) for i in range(12)])
    assert sum(joined) == 12 * 11 / 2 and max(joined) <= 20 + 11
