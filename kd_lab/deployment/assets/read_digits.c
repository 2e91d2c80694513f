/* Read digits from a file of pictures, 784 bytes each, and print one answer a line: read_digits FILE
 * Compile with -DHEADER='"network.h"' -DREAD=network_read. The 16 bytes with which MNIST's own files begin are passed over. */
#include HEADER
#include <stdio.h>
#include <string.h>

int main(int count, char **arguments) {
  static const uint8_t kind[4] = {0, 0, 8, 3}, shape[8] = {0, 0, 0, 28, 0, 0, 0, 28}; /* of MNIST's files */
  int failed;
  uint8_t pixels[784], begin[16];
  size_t got;
  FILE *file = count == 2 ? fopen(arguments[1], "rb") : NULL;
  if (!file) {
    fprintf(stderr, "usage: %s FILE, one that is there, of pictures of 784 bytes\n", count ? arguments[0] : "read_digits");
    return 2;
  }
  if (fread(begin, 1, 16, file) != 16 || memcmp(begin, kind, 4) || memcmp(begin + 8, shape, 8)) rewind(file);
  while ((got = fread(pixels, 1, 784, file)) == 784) printf("%d\n", READ(pixels));
  failed = ferror(file) || got;
  if (failed) fprintf(stderr, "%s can't be read, or ends in the middle of a picture\n", arguments[1]);
  fclose(file);
  return failed;
}
