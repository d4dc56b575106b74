// Tests of the emulator: `test_simt` lists them, `test_simt NAME` runs one. Exit status 0: passed. Names that begin
// with "bug_race_" have an error that ThreadSanitizer must report, those with "bug_memory_" one for AddressSanitizer or
// UBSan; what begins with "plain_" has one that the test itself looks for, and is for a build without sanitizers.
#include "test_simt.h"

#include <cstring>

int main(int argc, char** argv) {
  if (argc < 2) {
    for (const Test& test : tests()) std::printf("%s\n", test.name);
    return 0;
  }
  for (const Test& test : tests()) {
    if (std::strcmp(test.name, argv[1]) != 0) continue;
    test.run();
    return 0;
  }
  std::printf("no test %s\n", argv[1]);
  return 2;
}
