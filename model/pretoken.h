/* pretoken.h - cuts text into the pieces that byte-pair merging works on. Inside the model room only.
 *
 * One scanner a pre-tokenizer, each equal to Hugging Face's pipeline of the same name (its regexes are in pretoken.c).
 * Character classes are those of tokenizers 0.23 (Oniguruma with Unicode 16, Rust with 17): utf8proc's, and a table of what
 * was added since utf8proc 2.8 (Unicode 15).
 */
#ifndef MODEL_PRETOKEN_H
#define MODEL_PRETOKEN_H

#include <stddef.h>
#include <stdint.h>

enum pretoken { PRETOKEN_GPT2 = 1, PRETOKEN_SMOLLM, PRETOKEN_LLAMA3, PRETOKEN_QWEN2 };

/* The end of the piece that begins at s[at]; at < len, s is valid UTF-8, at < result <= len. Constant memory, and time
 * linear in the text over a whole pass. */
size_t pretoken_next(enum pretoken kind, const uint8_t *s, size_t len, size_t at);

#endif
