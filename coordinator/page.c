#include "coordinator/page.h"

/* The assembler reads the file (PAGE_DIR is given by CMakeLists.txt, which also knows that this depends on it). */
#define EMBED(name, file)                                                                                      \
    __asm__(".section .rodata\n"                                                                               \
            ".global page_" #name "\n.hidden page_" #name "\npage_" #name ":\n.incbin \"" PAGE_DIR file "\"\n" \
            ".global page_" #name "_end\n.hidden page_" #name "_end\npage_" #name "_end:\n.byte 0\n"           \
            ".previous\n");                                                                                    \
    extern const uint8_t page_##name[], page_##name##_end[]
EMBED(html, "/index.html");
EMBED(css, "/page.css");
EMBED(js, "/page.js");
EMBED(view, "/view.js");
EMBED(icon, "/icon.svg");

enum { FILES = 5 };

const struct page_file *page_files(unsigned *n)
{
    static struct page_file files[FILES];
#define BODY(name)                                             \
    {                                                          \
        page_##name, (size_t)(page_##name##_end - page_##name) \
    }
    const struct page_file now[FILES] = {{"/", "text/html; charset=utf-8", BODY(html)},
                                         {"/page.css", "text/css; charset=utf-8", BODY(css)},
                                         {"/page.js", "text/javascript; charset=utf-8", BODY(js)},
                                         {"/view.js", "text/javascript; charset=utf-8", BODY(view)},
                                         {"/icon.svg", "image/svg+xml", BODY(icon)}};
    for (int i = 0; i < FILES; i++)
        files[i] = now[i];
    *n = FILES;
    return files;
}
