"""The captioner against transformers' own BLIP, on random weights."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from timm.layers import Attention
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import BlipConfig, BlipForConditionalGeneration

from blip_art.config import ModelConfig, TrainConfig
from blip_art.model.beams import CHUNK, BeamOptions, likeliest
from blip_art.model.captioner import BlipCaptioner, build_captioner
from blip_art.model.decode import (
    NucleusOptions,
    _BeamBatch,
    _SampleBatch,
    beam_search,
    nucleus_sample,
)
from blip_art.model.encoder import Patches, attend
from blip_art.model.hf import save_hf, to_hf
from blip_art.model.linear import FastLinear, replaced, trained_linears
from blip_art.model.step import StepDecoder, padded
from blip_art.model.tokenizer import CaptionTokenizer, train_vocabulary
from blip_art.model.weights import load_weights
from blip_art.train.optim import Stepper

CAPTIONS = ["sun, tree and ship", "crown", "a fish in a house", "flower"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> CaptionTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_vocabulary(["a picture of " + caption for caption in CAPTIONS], folder, 120)
    return CaptionTokenizer(str(folder))


@pytest.fixture(scope="module", params=[96, 128], ids=["own width", "vision width"])
def model(request, tokenizer) -> BlipCaptioner:
    torch.manual_seed(0)
    model = build_captioner(ModelConfig(vit="tiny", image_size=64, text_width=request.param,
                                        text_layers=2, text_heads=4), tokenizer)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.15)  # far from zero, so that captions vary
    return model.eval()


@pytest.fixture(scope="module")
def peer(model, tokenizer, tmp_path_factory) -> BlipForConditionalGeneration:
    folder = tmp_path_factory.mktemp("hf")
    save_hf(model, tokenizer, folder)
    return BlipForConditionalGeneration.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def batch(tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    ids = tokenizer.encode(["a picture of " + caption for caption in CAPTIONS], 40)
    return ids, (ids != tokenizer.pad_id).long()


@torch.no_grad()
def test_logits_equal_the_peers(model, peer, images, batch):
    ids, mask = batch
    theirs = peer(pixel_values=images, input_ids=ids, attention_mask=mask).logits
    difference = (model.logits(images, ids) - theirs)[mask.bool()].abs().max()
    assert difference < 1e-5


@torch.no_grad()
def test_loss_equals_the_peers_with_the_originals_settings(model, peer, images, batch, tokenizer):
    ids, mask = batch
    labels = ids.masked_fill(ids == tokenizer.pad_id, -100)
    labels[:, :len(model.prompt_ids)] = -100
    theirs = peer(pixel_values=images, input_ids=ids, attention_mask=mask, labels=labels).loss
    assert model(images, ids).item() == pytest.approx(theirs.item(), abs=1e-5)


def test_loss_of_a_stored_vector(tokenizer):
    """Uniform logits: the cross-entropy is log(vocabulary), whatever the smoothing."""
    model = build_captioner(ModelConfig(vit="tiny", image_size=32, text_width=32, text_layers=1,
                                        text_heads=2), tokenizer).eval()
    nn.init.zeros_(model.text_decoder.cls.predictions.transform.LayerNorm.weight)
    ids = tokenizer.encode(["a picture of crown"], 40)
    bias = torch.arange(len(tokenizer), dtype=torch.float) / 10
    model.text_decoder.cls.predictions.bias.data.copy_(bias)
    crown, end = ids[0, len(model.prompt_ids):].tolist()[0], tokenizer.end_id
    # Only the bias speaks: 0.9 · (−log p of the target) + 0.1 · mean over the vocabulary.
    log_p = bias.log_softmax(0)
    counted = ids[0, len(model.prompt_ids):]
    expected = -(0.9 * log_p[counted].mean() + 0.1 * log_p.mean())
    assert crown != end
    assert model(torch.zeros(1, 3, 32, 32), ids).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("options", [
    BeamOptions(num_beams=1), BeamOptions(num_beams=3), BeamOptions(num_beams=3, min_length=12),
    BeamOptions(num_beams=4, repetition_penalty=1.4, length_penalty=0.5, max_length=12),
    BeamOptions(num_beams=3, repetition_penalty=1.2, num_return=3),
], ids=["greedy", "beam", "min_length", "penalties", "top 3"])
def test_captions_equal_the_peers(model, peer, images, tokenizer, options):
    prompt = torch.tensor([[*model.prompt_ids, tokenizer.end_id]]).repeat(len(images), 1)
    theirs = peer.generate(
        pixel_values=images, input_ids=prompt, attention_mask=torch.ones_like(prompt),
        num_beams=options.num_beams, max_length=options.max_length, min_length=options.min_length,
        length_penalty=options.length_penalty, repetition_penalty=options.repetition_penalty,
        num_return_sequences=options.num_return, do_sample=False)
    ours, _ = beam_search(StepDecoder(model), model.encode(images), options)
    words = [row[:row.index(tokenizer.end_id)] if tokenizer.end_id in row else row
             for row in theirs[:, len(model.prompt_ids):].tolist()]
    assert [ids for picture in ours for ids in picture] == words


def test_weights_come_back_from_the_peers_folder(model, peer, tokenizer, tmp_path):
    peer.save_pretrained(tmp_path)
    copy = build_captioner(model.config, tokenizer)
    load_weights(copy, str(tmp_path))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, copy.state_dict()[name]), name


@pytest.mark.parametrize(("vit", "vision"), [
    ("base", {}),
    ("large", {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
               "num_attention_heads": 16}),
])
def test_full_size_models_have_the_peers_shapes(tokenizer, vit, vision):
    """Names and shapes of Salesforce/blip-image-captioning-base and -large."""
    text = {"encoder_hidden_size": vision.get("hidden_size", 768), "vocab_size": 30524}
    with torch.device("meta"):
        theirs = BlipForConditionalGeneration(BlipConfig(
            vision_config={"image_size": 384, **vision}, text_config=text)).state_dict()
        ours = to_hf(BlipCaptioner(ModelConfig(vit=vit), 30524, 0, 102, [1]).state_dict())
    assert ({name: tensor.shape for name, tensor in ours.items() if "token_type" not in name}
            == {name: tensor.shape for name, tensor in theirs.items()})


@torch.inference_mode()
def test_the_encoder_of_captions_is_the_models(model, images):
    plain = model.encode(images)
    assert torch.allclose(StepDecoder(model).encode(images), plain, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        ours, timms = StepDecoder(model, torch.bfloat16).encode(images), model.encode(images)
    assert (ours - plain).norm() < 0.8 * (timms - plain).norm()
    assert not any("forward" in vars(module) for module in model.modules())


def test_the_likeliest_tokens_are_found_by_chunks():
    scores = torch.randn(5, 3, 20 * CHUNK, generator=torch.Generator().manual_seed(0))
    scores[0, 0, 7 * CHUNK:7 * CHUNK + 6] = 9 + torch.rand(6)  # all in one chunk
    for ours, torchs in zip(likeliest(scores, 6), scores.topk(6), strict=True):
        assert torch.equal(ours, torchs)


@torch.inference_mode()
def test_attention_by_groups_of_heads_is_timms():
    attention, x = Attention(80, num_heads=5).eval(), torch.randn(2, 33, 80)
    assert torch.allclose(attend(attention, x), attention(x), atol=1e-6)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_patches_are_embedded_as_by_a_convolution(model, images, dtype):
    embed = model.visual_encoder.patch_embed
    plain = embed(images)
    assert torch.allclose(Patches(embed, dtype)(images).float(), plain,
                          atol=1e-5 if dtype is torch.float32 else 5e-3)


class Ending(StepDecoder):
    """Ends captions at lengths that differ from picture to picture, and counts the rows it saw."""

    rows = 0

    def __call__(self, state, ids, start):
        logits = super().__call__(state, ids, start)
        self.rows += len(logits)
        wave = (state.cross[0, 0].mean((1, 2, 3)) * 1e4 + start + ids.shape[2]).sin()
        logits[:, self.model.end_id] += 6 * wave.repeat_interleave(len(logits) // len(wave))
        return logits


@pytest.mark.parametrize("options", [
    BeamOptions(num_beams=3), BeamOptions(num_beams=4, groups=2, num_return=2, diversity=0.5),
    BeamOptions(num_beams=3, num_return=3, repetition_penalty=1.2)],
    ids=["beams", "groups", "top 3"])
@pytest.mark.parametrize("fixed", [False, True])
def test_captions_do_not_depend_on_what_shares_the_batch(model, options, fixed):
    """Pictures that are finished leave the batch, the others go on as if alone."""
    images = torch.randn(40, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    decoder = Ending(model)
    beam_search(decoder, model.encode(images.flip(0)), options, fixed)  # who was there before
    decoder.rows = 0
    together, scores = beam_search(decoder, model.encode(images), options, fixed)
    seen = decoder.rows
    assert bool(decoder.kept) == fixed
    for n, (captions, row) in enumerate(zip(together, scores, strict=True)):
        alone, alone_scores = beam_search(decoder, model.encode(images[n:n + 1]), options)
        assert alone == [captions]
        assert torch.allclose(alone_scores[0], row, atol=1e-5)
    assert len({len(captions[0]) for captions in together}) > 2
    words = options.max_length - len(model.prompt_ids)
    assert seen < 40 + 40 * options.num_beams * (words - 2)


@pytest.mark.parametrize("options", [
    BeamOptions(num_beams=1), BeamOptions(num_beams=4, groups=2, num_return=2, diversity=0.5),
    BeamOptions(num_beams=3, num_return=3, repetition_penalty=1.2)],
    ids=["greedy", "groups", "top 3"])
def test_the_layout_of_a_gpu_changes_no_caption(model, options):
    """Keys and values as the product lays them, a vocabulary of whole chunks, batches of halves."""
    images = torch.randn(40, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    plain, laid = Ending(model), Ending(model)
    laid.lays_down = True
    for layer in laid.layers:  # `write` is torch's own product: weights as torch has them
        own = model.text_decoder.bert.encoder.layer[laid.layers.index(layer)].crossattention.self
        layer.cross_states.weight = torch.cat([own.key.weight, own.value.weight]).detach()
    laid.words = FastLinear(torch.float32, padded(model.text_decoder.cls.predictions.decoder))
    states = model.encode(images)
    captions, scores = beam_search(plain, states, options)
    for _ in range(2):
        same, near = beam_search(laid, states, options, fixed=True)
        assert same == captions
        # Sums of up to 16 log-probabilities in fp32, added up in another order: 1.2e-4 was seen.
        assert torch.allclose(near, scores, atol=5e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_says_nearly_the_same(model, images, dtype):
    whole, half = StepDecoder(model), StepDecoder(model, dtype)
    _, scores = beam_search(whole, whole.encode(images), BeamOptions())
    with torch.autocast("cpu", dtype):
        _, nearly = beam_search(half, half.encode(images), BeamOptions())
    assert torch.allclose(scores, nearly, atol=0.02)


@pytest.mark.parametrize("fixed", [False, True])
def test_sampled_captions_depend_on_their_own_seed_only(model, fixed):
    """Also when pictures that are finished leave the batch."""
    images = torch.randn(40, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    options, decoder = NucleusOptions(num_return=2), Ending(model)
    together = nucleus_sample(decoder, model.encode(images), options, list(range(40)), fixed)
    seen = decoder.rows
    for n, captions in enumerate(together):
        assert nucleus_sample(decoder, model.encode(images[n:n + 1]), options, [n]) == [captions]
    assert together[0][0] != together[0][1]
    words = options.max_length - len(model.prompt_ids)
    assert seen < 40 + 40 * 2 * (words - 1)


def test_diverse_beams_start_differently(model, images):
    options = BeamOptions(num_beams=3, groups=3, num_return=3, diversity=100.0)
    captions, _ = beam_search(StepDecoder(model), model.encode(images), options)
    assert all(len({ids[0] for ids in picture}) == 3 for picture in captions)


class NobodyAsks(TorchFunctionMode):
    """Fails where the host would wait for a GPU to tell it a value."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        assert name not in ("__bool__", "item", "tolist", "nonzero", "numpy", "cpu"), name
        return function(*args, **(kwargs or {}))


def test_no_value_is_asked_of_the_device_in_a_step(model, images, batch):
    model, counted = copy.deepcopy(model), model.counted(batch[0])
    stepper = Stepper(model, TrainConfig(clip_norm=1.0), torch.device("cpu"))
    with NobodyAsks():
        stepper.backward(model(images, batch[0], counted))
        stepper.step()


@torch.inference_mode()
@pytest.mark.parametrize(("kind", "options"), [(_BeamBatch, BeamOptions(repetition_penalty=1.2)),
                                               (_SampleBatch, NucleusOptions())])
def test_no_value_is_asked_of_the_device_in_the_steps_of_a_caption(model, images, kind, options):
    states = model.encode(images)
    decoding = kind(StepDecoder(model), *states.shape[:2], options)
    for given in decoding.inputs:
        given.copy_(states if given is decoding.image_states else torch.rand(given.shape))
    with NobodyAsks():
        for word in range(decoding.words):
            decoding.step(word)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_linear_maps_through_onednn_have_the_same_gradients(model, images, batch, checkpointing):
    def gradients(linears) -> dict[str, torch.Tensor]:
        one = copy.deepcopy(model)
        one.text_decoder.bert.embeddings.word_embeddings.weight.requires_grad_(False)
        if checkpointing:
            one.set_grad_checkpointing()
        with replaced(linears(one)):
            one(images, batch[0]).backward()
        assert "forward" not in vars(one.text_decoder.bert.encoder.layer[0].output.dense)
        return {name: p.grad for name, p in one.named_parameters() if p.grad is not None}
    plain, fast = gradients(lambda one: {}), gradients(trained_linears)
    assert plain.keys() == fast.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(fast[name], gradient, rtol=1e-4, atol=1e-6)


def test_gradient_checkpointing_changes_no_gradient(model, images, batch):
    def gradient() -> torch.Tensor:
        model.zero_grad()
        model(images, batch[0]).backward()
        return model.visual_encoder.patch_embed.proj.weight.grad.clone()
    # Dropout off (eval mode), but checkpointing is only active in training mode.
    quiet = BlipCaptioner(dataclasses.replace(model.config, dropout=0.0), model.vocab_size,
                          model.pad_id, model.end_id, model.prompt_ids)
    quiet.load_state_dict(model.state_dict())
    model = quiet.train()
    plain = gradient()
    model.set_grad_checkpointing()
    assert torch.allclose(gradient(), plain, atol=1e-7)
