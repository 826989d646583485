"""Audio encoders of the zoo: Whisper's encoder on spectrograms of one length, wav2vec2 on raw samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import transformers as t
from zoo_families import BATCH_AXES, LABELS, VOCAB, Family, Feeds, Sizes, layered

MELS, FRAMES, STRIDE = 8, 12, 8


def spectrogram_feeds(rng: np.random.Generator, batch: int, length: int, padded: bool) -> Feeds:
    """Noise[B, mels, frames]. `length` and `padded` are without effect: Whisper has one length."""
    return {"input_features": rng.standard_normal((batch, MELS, 2 * FRAMES)).astype(np.float32)}


def sample_feeds(rng: np.random.Generator, batch: int, length: int, padded: bool) -> Feeds:
    """Noise[B, samples] that the convolutions turn into `length` frames. Padding is silence, without a mask."""
    return {"input_values": rng.standard_normal((batch, STRIDE * length + 6)).astype(np.float32)}


def _whisper(sizes: Sizes) -> Any:
    return t.WhisperConfig(
        num_labels=LABELS, vocab_size=VOCAB, d_model=sizes.width, encoder_layers=sizes.layers, decoder_layers=1,
        encoder_attention_heads=sizes.heads, decoder_attention_heads=sizes.heads, encoder_ffn_dim=sizes.neurons,
        decoder_ffn_dim=8, num_mel_bins=MELS, max_source_positions=FRAMES, max_target_positions=8,
        classifier_proj_size=20, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        use_cache=False,
    )  # fmt: skip


def _wav2vec2(stable: bool) -> Any:
    return lambda sizes: t.Wav2Vec2Config(
        num_labels=LABELS, vocab_size=20, hidden_size=sizes.width, num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads, intermediate_size=sizes.neurons, conv_dim=(16, 16), conv_kernel=(6, 3),
        conv_stride=(4, 2), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, classifier_proj_size=20,
        do_stable_layer_norm=stable, feat_extract_norm="layer" if stable else "group", conv_bias=stable,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


_WAV2VEC2_RECORDS = layered("wav2vec2.encoder.layers", "attention", "attention.out_proj", "feed_forward.output_dense")
_SAMPLES = {"input_values": {0: "batch_size", 1: "audio_length"}}

AUDIO = (
    Family(
        "whisper", t.WhisperForAudioClassification, _whisper,
        layered("encoder.layers", "self_attn", "self_attn.out_proj", "fc2"), spectrogram_feeds,
        axes={"input_features": BATCH_AXES}, task="audio-classification", shapes={"nb_max_frames": 2 * FRAMES},
    ),
    Family(
        "wav2vec2", t.Wav2Vec2ForCTC, _wav2vec2(stable=False), _WAV2VEC2_RECORDS, sample_feeds,
        axes={**_SAMPLES, "logits": {0: "batch_size", 1: "frames"}}, task="automatic-speech-recognition",
    ),
    Family(
        "wav2vec2-stable", t.Wav2Vec2ForSequenceClassification, _wav2vec2(stable=True), _WAV2VEC2_RECORDS,
        sample_feeds, axes=_SAMPLES, task="audio-classification",
    ),
)  # fmt: skip
