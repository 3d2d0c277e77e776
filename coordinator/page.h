/* page.h - the dashboard's files (coordinator/page/), put into the program when it is built. */
#ifndef COORDINATOR_PAGE_H
#define COORDINATOR_PAGE_H

#include "base/buf.h"

struct page_file {
    const char *path, *type; /* as HTTP has them */
    struct bytes body;
};
const struct page_file *page_files(unsigned *n);

#endif
