#include "replay/key.h"

uint64_t replay_key(const struct sip_key *seed, struct domain_id domain, uint64_t offset)
{
    uint8_t in[10] = {(uint8_t)domain.v, (uint8_t)(domain.v >> 8)};
    for (int i = 0; i < 8; i++)
        in[2 + i] = (uint8_t)(offset >> (8 * i));
    return hash_sip(seed, in, sizeof in);
}
