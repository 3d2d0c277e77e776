#include "harness.h"
#include "world.h"
int main(void)
{
    EXPECT(1);
    return harness_end();
}
