/* admin.h - the operator's verbs: one question, one JSON answer (docs/reference/control.md). */
#ifndef CLIENT_ADMIN_H
#define CLIENT_ADMIN_H

#include "alluvium.pb-c.h"
#include "base/buf.h"
#include "net/join.h"

/* Asks and waits at most timeout_ms. The token that makes a retry get the first answer is put into `control`. `json` is
 * appended to. ST_DENIED: not an operator's join file. Other statuses are the coordinator's, with its text. */
enum status admin_call(const struct join *join, Alv__Control *control, int timeout_ms, int stop_fd, struct buf *json,
                       struct err *err);

#endif
