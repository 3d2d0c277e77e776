/* chart.h - versions as a picture: an SVG that stands alone, with no reference to anything outside it.
 *
 * Three panels over the same versions: losses of each domain with a mark at each publish; domains by versions, coloured by
 * what was learnt since the base; and what was learnt against what was forgotten, a point a version. Light or dark as
 * its reader's screen is; every mark has a title, lines differ by dashes as well as by colour.
 */
#ifndef CLI_CHART_H
#define CLI_CHART_H

#include <jansson.h>

#include "base/buf.h"
#include "base/status.h"

enum { CHART_VERSIONS_MAX = 2000, CHART_DOMAINS_MAX = 256 };

/* `versions`: an array of versions as the verb VERSIONS gives them, newest first; from a file, it may be anything. ST_BAD_DATA
 * says what is no version. What is missing in a version is not measured. */
enum status chart_draw(const json_t *versions, struct buf *out, struct err *err);

#endif
