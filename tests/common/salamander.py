"""The "invisible salamander" (Dodis and others, 2018): one AES-GCM ciphertext for two keys.

GHASH is linear in the ciphertext, so one free block solves for equal tags under both keys.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

_POLYNOMIAL = 0xE1 << 120
_ONE = 1 << 127


def forge(first: tuple[bytes, bytes], second: tuple[bytes, bytes], blocks: int = 4) -> bytes:
    """A ciphertext with its tag that opens under both (key, nonce) pairs, to different plaintexts."""
    bodies = [int.from_bytes(bytes([block + 1]) * 16, "big") for block in range(blocks - 1)]
    length = blocks * 128
    sums, hashes, masks = [], [], []
    for key, nonce in (first, second):
        subkey = int.from_bytes(_aes(key, bytes(16)), "big")
        hashes.append(subkey)
        masks.append(int.from_bytes(_aes(key, nonce + b"\0\0\0\1"), "big"))
        sums.append(_ghash(subkey, [*bodies, 0], length))
    # Where the last ciphertext block x adds x * H^2 to each hash, this x makes the tags equal.
    weight = _multiply(hashes[0], hashes[0]) ^ _multiply(hashes[1], hashes[1])
    free = _multiply(sums[0] ^ masks[0] ^ sums[1] ^ masks[1], _invert(weight))
    whole = [*bodies, free]
    tag = _ghash(hashes[0], whole, length) ^ masks[0]
    return b"".join(block.to_bytes(16, "big") for block in [*whole, tag])


def _aes(key: bytes, block: bytes) -> bytes:
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # GCM's own block calls
    return encryptor.update(block) + encryptor.finalize()


def _ghash(subkey: int, blocks: list[int], length_bits: int) -> int:
    total = 0
    for block in [*blocks, length_bits]:
        total = _multiply(total ^ block, subkey)
    return total


def _multiply(left: int, right: int) -> int:
    product = 0
    for bit in range(127, -1, -1):
        if left >> bit & 1:
            product ^= right
        right = right >> 1 ^ (_POLYNOMIAL if right & 1 else 0)
    return product


def _invert(value: int) -> int:
    # Fermat: the multiplicative group has 2^128 - 1 elements.
    result = _ONE
    for _ in range(127):
        value = _multiply(value, value)
        result = _multiply(result, value)
    return result
