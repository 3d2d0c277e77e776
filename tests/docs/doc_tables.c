/* The tables of docs/reference that come from the sources, as Markdown: doc_tables settings | verbs.
 * scripts/gen-settings-docs puts them into the pages; the test `docs_tables` asks whether they are current. */
#include <stdio.h>
#include <string.h>

#include "coordinator/core/settings.h"
#include "proto/verbs.h"

enum { VALUE_SIZE = 64 };

static void print_settings(void)
{
    struct settings defaults;
    char value[VALUE_SIZE];
    const struct setting_info *row;
    settings_default(&defaults);
    puts("| setting | default | allowed | per domain | unit, and why |\n|---|---|---|---|---|");
    for (unsigned i = 0; (row = settings_info(i)); i++) {
        settings_value(&defaults, row->name, value, sizeof value);
        printf("| `%s` | %s | %.15g to %.15g | %s | %s |\n", row->name, value, row->low, row->high,
               settings_for_domain(row->name) ? "yes" : "", row->reason);
    }
}

static void print_verbs(void)
{
    static const enum role roles[] = {ROLE_PRODUCER, ROLE_WORKER, ROLE_SUBSCRIBER, ROLE_OPERATOR};
    unsigned n;
    const struct verb_info *table = verb_table(&n);
    puts("| number | verb | plane | producer | worker | subscriber | operator |\n|---|---|---|---|---|---|---|");
    for (unsigned i = 0; i < n; i++) {
        unsigned planes = table[i].planes, first = 0;
        if (!table[i].roles) /* a reply: its number follows its request's */
            continue;
        while (!(planes & (1u << first)))
            first++;
        printf("| %d | `%s` | %s |", table[i].verb, table[i].name,
               planes == 1u << first ? plane_name((enum plane)first) : "every");
        for (unsigned r = 0; r < sizeof roles / sizeof roles[0]; r++)
            printf(" %s |", table[i].roles & (unsigned)roles[r] ? "yes" : "");
        puts("");
    }
}

int main(int argc, char **argv)
{
    const char *what = argc == 2 ? argv[1] : "";
    if (!strcmp(what, "settings"))
        print_settings();
    else if (!strcmp(what, "verbs"))
        print_verbs();
    else
        return fprintf(stderr, "usage: doc_tables settings|verbs\n"), 2;
    return 0;
}
