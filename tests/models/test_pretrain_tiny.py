import hashlib

from transformers import AutoModelForImageTextToText

from models import pretrain_tiny


def test_equal_seeds_give_equal_bytes_and_another_seed_different_weights(at_root, tmp_path, monkeypatch, capsys):
    few = "--tower-images 32 --tower-steps 3 --tower-batch 8 --talk-images 16 --talk-steps 2 --talk-batch 4".split()

    def made(name, seed):
        folder = tmp_path / name
        monkeypatch.setattr("sys.argv", ["pretrain_tiny", "--output", str(folder), "--seed", str(seed), *few])
        pretrain_tiny.main()
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}

    first = made("a", 7)
    assert made("b", 7) == first
    assert made("c", 8)["model.safetensors"] != first["model.safetensors"]
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "a")
    assert 2e6 < sum(p.numel() for p in model.parameters()) < 5e6
