/* toy_base DIR: a base model that trains in milliseconds, for tests of the whole program. */
#include <sys/stat.h>

#include "toy.h"

int main(int argc, char **argv)
{
    if (argc != 2)
        return 2;
    (void)mkdir(argv[1], 0700);
    toy_base_write(argv[1]);
    return 0;
}
