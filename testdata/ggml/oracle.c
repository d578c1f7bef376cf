// Quantizes or decodes rows with llama.cpp's own functions, from standard input to standard output, so that `make_ggml.py`
// and `interop/ggml_blocks.py` can ask them. Build it against the library that llama-quantize is linked with:
//
//     cc -O2 -I$LLAMA/ggml/include oracle.c $LLAMA/build/ggml/src/libggml-base.a -lstdc++ -lm -lpthread -o oracle
//
//     oracle encode TYPE ROW_LEN WEIGHTED < [ROW_LEN floats of importance, if WEIGHTED is 1] rows > blocks
//     oracle decode TYPE < blocks > floats
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ggml.h"

static char *read_all(size_t *size) {
    size_t capacity = 1 << 20;
    char *data = malloc(capacity);
    *size = 0;
    for (size_t n; (n = fread(data + *size, 1, capacity - *size, stdin)) > 0;) {
        *size += n;
        if (*size == capacity) {
            data = realloc(data, capacity *= 2);
        }
    }
    return data;
}

int main(int argc, char **argv) {
    enum ggml_type type = argc > 2 ? atoi(argv[2]) : GGML_TYPE_F32;
    size_t size;
    char *input = read_all(&size);
    if (argc == 5 && strcmp(argv[1], "encode") == 0) {
        long row_len = atol(argv[3]);
        int weighted = atoi(argv[4]);
        const float *importance = weighted ? (const float *)input : NULL;
        const float *rows = (const float *)input + (weighted ? row_len : 0);
        long count = (long)(size / sizeof(float)) / row_len - weighted;
        size_t bytes = count * ggml_row_size(type, row_len);
        char *blocks = calloc(bytes, 1);
        ggml_quantize_chunk(type, rows, blocks, 0, count, row_len, importance);
        fwrite(blocks, 1, bytes, stdout);
    } else if (argc == 3 && strcmp(argv[1], "decode") == 0) {
        long count = (long)(size / ggml_type_size(type)) * ggml_blck_size(type);
        float *values = calloc(count, sizeof(float));
        ggml_get_type_traits(type)->to_float(input, values, count);
        fwrite(values, sizeof(float), count, stdout);
    } else {
        fprintf(stderr, "usage: oracle encode TYPE ROW_LEN WEIGHTED | oracle decode TYPE\n");
        return 2;
    }
    return 0;
}
