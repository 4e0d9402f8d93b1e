import pytest

from visual_tokenizer import build_quantizer
from visual_tokenizer.quantizers.base import QuantizerConfig
from visual_tokenizer.registry import PLUGINS_VARIABLE, ConfigError, PartDefinitionError, UnknownPartError


def test_unknown_part_names_what_there_is():
    with pytest.raises(UnknownPartError, match=r"no part 'fsk' in quantizers: .*fsq.*vq.* Did you mean 'fsq'\?"):
        build_quantizer("fsk")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"codebok_size": 8}, r"quantizers\.vq: unknown key 'codebok_size'.*Did you mean 'codebook_size'\?"),
        ({"update": {"type": "ema", "dcay": 0.5}}, r"vq: update: unknown key 'dcay'.*'decay'"),
        ({"update": {"type": "emma"}}, r"vq: update\.type must be one of .*ema, .*gradient, got 'emma'"),
        ({"update": {"decay": 0.5}}, r"vq: update\.type must be one of"),
        ({"update": {"type": "ema", "decay": 2}}, r"decay must be in \[0, 1\), got 2"),
        ({"update": "ema"}, r"vq: update must be a section of fields, got 'ema'"),
        ({"update": None}, r"vq: update must be a section of fields, got None"),
        ({"codebook_size": "many"}, r"codebook_size"),
        ({"codebook_size": 1}, r"codebook_size must be 2 or more, got 1"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        build_quantizer("vq", **fields)


def test_a_section_without_a_type_is_refused():
    with pytest.raises(UnknownPartError, match="needs the key 'type'"):
        QuantizerConfig.family.config({"levels": [3, 3]})


def test_a_file_with_two_parts_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "visual_tokenizer" / "quantizers"
    folder.mkdir(parents=True)
    (folder / "twins.py").write_text(
        "from visual_tokenizer.quantizers.base import Quantizer\n"
        "class One(Quantizer): pass\n"
        "class Two(Quantizer): pass\n"
    )
    monkeypatch.setenv(PLUGINS_VARIABLE, str(tmp_path))
    package = __import__("visual_tokenizer.quantizers", fromlist=["x"])
    monkeypatch.setattr(package, "__path__", list(package.__path__))
    with pytest.raises(PartDefinitionError, match=r"exactly one Quantizer; found \['One', 'Two'\]"):
        QuantizerConfig.family.get("twins")
