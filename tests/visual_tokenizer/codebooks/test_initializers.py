import pytest
import torch
from safetensors.torch import save_file

from visual_tokenizer import build_quantizer


def vq(**fields):
    torch.manual_seed(0)
    return build_quantizer("vq", **{"codebook_size": 64, "code_dim": 4, **fields})


def nearest_rows(codes, latents):
    return torch.cdist(codes, latents, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1).values


def test_streaming_sets_codes_from_the_latents_of_each_step():
    quantizer = vq(initializer={"type": "streaming", "codes_per_step": 24, "noise": 0.0}, update={"type": "frozen"})
    seen = []
    for expected in (24, 48, 64, 64):
        latents = torch.randn(2, 30, 4) + 10
        seen.append(latents.view(-1, 4))
        output = quantizer(latents)
        assert quantizer.codes_set == expected
        assert output.indices.max() < expected  # codes that are not set are not chosen
    assert nearest_rows(quantizer.codebook.data, torch.cat(seen[:3])).max() == 0
    assert quantizer.codebook.data.unique(dim=0).shape[0] == 64


def test_streaming_noise_tells_copies_apart():
    quantizer = vq(initializer={"type": "streaming"}, update={"type": "frozen"})
    latents = torch.randn(2, 4).repeat(64, 1)[None]
    quantizer(latents)
    assert quantizer.codebook.data.unique(dim=0).shape[0] == 64


def test_error_driven_codes_go_where_the_error_is():
    fields = {"type": "error_driven", "codes_per_step": 4, "top_share": 0.1}
    quantizer = vq(initializer=fields, update={"type": "frozen"})
    quantizer(torch.zeros(1, 40, 4))
    far = torch.zeros(1, 40, 4)
    far[0, :4] = torch.eye(4) * 9  # the four worst served of forty
    quantizer(far)
    assert quantizer.codes_set == 8
    assert torch.equal(quantizer.codebook.data[4:8].sort(dim=0).values, far[0, :4].sort(dim=0).values)


def test_error_driven_covers_better_than_streaming():
    """Ten clusters of which one holds nearly all latents: each step's worst served find the others."""
    torch.manual_seed(0)
    centres = torch.randn(10, 4) * 20
    share = torch.tensor([0.91] + [0.01] * 9)

    def error(name, **fields):
        initializer = {"type": name, "codes_per_step": 4, **fields}
        quantizer = vq(initializer=initializer, codebook_size=16, update={"type": "frozen"})
        generator = torch.Generator().manual_seed(1)
        for _ in range(6):
            chosen = torch.multinomial(share, 256, replacement=True, generator=generator)
            output = quantizer((centres[chosen] + torch.randn(256, 4, generator=generator))[None])
        return output.metrics["quantization_error"]

    assert error("error_driven", top_share=0.05) < 0.5 * error("streaming")


def test_partly_set_codebook_survives_saving():
    fields = {"initializer": {"type": "streaming", "codes_per_step": 10}}
    quantizer, twin = vq(**fields), vq(**fields)
    quantizer(torch.randn(1, 30, 4))
    twin.load_state_dict(quantizer.state_dict())
    latents = torch.randn(1, 30, 4)
    for model in (quantizer, twin):
        torch.manual_seed(5)
        model(latents)
    assert quantizer.codes_set == twin.codes_set == 20
    assert torch.equal(quantizer.codebook.data, twin.codebook.data)


def feature_file(tmp_path, features):
    path = tmp_path / "features.safetensors"
    save_file({"features": features}, path)
    return {"type": "features", "path": str(path), "samples": 400}


def test_features_keep_their_clusters_and_take_the_latents_place(tmp_path):
    """Three clusters in 16-d features become three groups of codes, within the latents' mean and spread."""
    torch.manual_seed(0)
    centres = torch.randn(3, 16) * 8
    features = (centres[:, None] + 0.1 * torch.randn(3, 100, 16)).view(-1, 16)
    quantizer = vq(initializer=feature_file(tmp_path, features), codebook_size=12)
    latents = torch.randn(400, 4) * torch.tensor([3.0, 2.0, 0.2, 0.1]) + 2
    assert quantizer.samples_wanted == 400
    quantizer.initialize(latents)
    codes = quantizer.codebook.data
    near = (torch.cdist(codes, codes) < 1.5).float()
    assert torch.linalg.matrix_power(near, 12).bool().unique(dim=0).shape[0] == 3
    torch.testing.assert_close(codes.mean(0), latents.mean(0), atol=1.0, rtol=0)
    assert codes[:, 0].std() > 5 * codes[:, 3].std()  # the features' strongest direction falls on the latents'


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (None, "no file"),
        (torch.randn(9, 2), "at least as wide as the codes, 4"),
        (torch.randn(9), "features' \\(M, D\\)"),
    ],
)
def test_bad_feature_files_are_named(tmp_path, features, message):
    path = str(tmp_path / "missing.safetensors")
    fields = {"type": "features", "path": path} if features is None else feature_file(tmp_path, features)
    quantizer = vq(initializer=fields)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        quantizer.initialize(torch.randn(400, 4))
