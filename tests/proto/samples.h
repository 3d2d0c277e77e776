/* samples.h - a full example of the message of every verb: seeds for round trips, truncations and bit flips. */
#ifndef TESTS_PROTO_SAMPLES_H
#define TESTS_PROTO_SAMPLES_H

#include "proto/codec.h"

/* Static memory; valid for ever. CHECKs that every verb of verbs.c has one. */
const ProtobufCMessage *sample_of(uint16_t verb);

#endif
