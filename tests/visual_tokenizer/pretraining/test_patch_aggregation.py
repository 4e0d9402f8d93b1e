import torch
from transformers import BeitForMaskedImageModeling

from visual_tokenizer.pretraining.beit import beit_config, build_beit


def build(beit_recipe, build_tokenizer, **overrides):
    recipe = beit_recipe(model__layers=4, model__drop_path=0.0, **overrides)
    torch.manual_seed(0)
    return build_beit(beit_config(recipe.model, recipe.image_size, build_tokenizer()), recipe.patch_aggregation)


def inputs():
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[:, :6] = True
    return torch.rand(2, 3, 16, 16) * 2 - 1, mask


def test_the_second_head_reads_block_l_and_the_last_class_token(beit_recipe, build_tokenizer):
    aggregation = {"layer": 2, "head_layers": 2}
    model = build(beit_recipe, build_tokenizer, patch_aggregation=aggregation).eval()
    for parameter in (model.beit.shared_position_bias.relative_position_bias_table,):
        torch.nn.init.normal_(parameter)
    pixels, mask = inputs()
    states = []
    hooks = [block.register_forward_hook(lambda _, __, out: states.append(out)) for block in model.beit.layers]
    output = model(pixel_values=pixels, bool_masked_pos=mask)
    for hook in hooks:
        hook.remove()
    bias = model.beit.shared_position_bias((4, 4))
    found = torch.cat([states[3][:, :1], states[1][:, 1:]], dim=1)
    for block in model.aggregation:
        found = block(found, attention_mask=bias, resolution=(16, 16))
    expected = model.lm_head(model.layernorm(found)[:, 1:])
    assert torch.allclose(output.aggregated_logits, expected, atol=1e-6)
    plain = BeitForMaskedImageModeling(model.config)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("aggregation.")})
    same = plain.eval()(pixel_values=pixels, bool_masked_pos=mask).logits
    assert torch.allclose(output.logits, same, atol=1e-6)


def test_late_patches_reach_the_second_prediction_through_the_class_token_alone(beit_recipe, build_tokenizer):
    model = build(beit_recipe, build_tokenizer, patch_aggregation={"layer": 2, "head_layers": 1})
    pixels, mask = inputs()
    states = []
    for block in model.beit.layers:
        block.register_forward_hook(lambda _, __, out: (out.retain_grad(), states.append(out))[1])
    aggregated = model(pixel_values=pixels, bool_masked_pos=mask).aggregated_logits
    (aggregated * torch.randn_like(aggregated)).sum().backward()
    assert torch.all(states[3].grad[:, 1:] == 0)
    assert torch.all(states[3].grad[:, 0].abs().sum(-1) > 0)
    assert torch.all(states[1].grad[:, 1:].abs().sum(-1) > 0)


def test_the_papers_first_weights(beit_recipe, build_tokenizer):
    model = build(beit_recipe, build_tokenizer, model__hidden_size=128)
    stds = [block.mlp.fc2.weight.std().item() for block in model.beit.layers]
    for number, std in enumerate(stds, 1):
        assert abs(std / (0.02 / (2 * number) ** 0.5) - 1) < 0.1
    mask_token = model.beit.embeddings.mask_token
    assert mask_token.abs().max() <= 0.02
    assert mask_token.std() > 0.005
    torch.testing.assert_close(model.beit.layers[0].lambda_1.detach(), torch.full((128,), 0.1))
