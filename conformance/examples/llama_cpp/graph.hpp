// Collects the tensors of llama.cpp's graphs from its evaluation callback.
#pragma once

#include "ggml-backend.h"
#include "ggml.h"
#include "trace_file.hpp"

#include <cstring>
#include <unordered_map>

// Writes each tensor as "17 Qcur-0", its number and its name, as names repeat, and keeps for the header how it came to
// be: ["17 Qcur-0", "MUL_MAT", "blk.0.attn_q.weight", "12 attn_norm-0"]. `conform` knows the stages by that.
class Graph {
  public:
    explicit Graph(TraceFile & file) : file(file) {}
    std::string lines() const { return "[" + log + "]"; }

    // Say whose graph comes next: "picture" or "decoder"; nullptr: none that is to be kept.
    void begin(const char * pass) {
        keys.clear();
        watching = pass != nullptr;
        if (watching) note(quoted(pass));
    }

    // llama.cpp asks about each tensor before it computes it, and calls again once it has. The answer is always yes: so
    // each is computed by itself, where ggml would fuse some and never write the first of them.
    static bool callback(ggml_tensor * tensor, bool ask, void * self) {
        if (!ask) static_cast<Graph *>(self)->see(tensor);
        return true;
    }

  private:
    TraceFile & file;
    std::string log;
    std::unordered_map<const ggml_tensor *, std::string> keys;  // of the graph that is running
    size_t count = 0;
    bool watching = false;

    void note(const std::string & line) { log += (log.empty() ? "" : ",\n") + line; }

    void see(const ggml_tensor * tensor) {
        if (!watching) return;
        std::string sources;
        for (const ggml_tensor * source : tensor->src) {
            if (source) sources += "," + quoted(key_of(source));
        }
        note("[" + quoted(numbered(tensor)) + "," + quoted(ggml_op_name(tensor->op)) + sources + "]");
        if (!in_cache(tensor)) store(tensor);
    }

    const std::string & numbered(const ggml_tensor * tensor) {
        return keys[tensor] = std::to_string(count++) + " " + tensor->name;
    }

    std::string key_of(const ggml_tensor * source) {
        if (const auto found = keys.find(source); found != keys.end()) return found->second;
        if (!(source->flags & GGML_TENSOR_FLAG_INPUT)) return source->name;  // a weight, or the cache
        note("[" + quoted(numbered(source)) + "]");
        store(source);
        return keys[source];
    }

    // Views of the cache are large and only repeat what went in. Its buffer is neither one of weights nor of a graph.
    static bool in_cache(const ggml_tensor * tensor) {
        const ggml_tensor * base = tensor->view_src;
        return base && ggml_backend_buffer_get_usage(base->buffer) == GGML_BACKEND_BUFFER_USAGE_ANY;
    }

    // Copy a tensor from whatever device it is on, row by row, as a view may have any strides. Floats of 16 bits and
    // packed types become float32.
    void store(const ggml_tensor * t) {
        const char * dtype = t->type == GGML_TYPE_I32 ? "I32" : t->type == GGML_TYPE_I64 ? "I64" : "F32";
        const auto widen = ggml_get_type_traits(t->type)->to_float;
        const bool as_it_is = *dtype == 'I' || t->type == GGML_TYPE_F32;
        if (!as_it_is && !widen) return;  // a type of integers that no stage has
        std::vector<char> memory(ggml_nbytes(t)), row(ggml_row_size(t->type, t->ne[0])), out;
        ggml_backend_tensor_get(t, memory.data(), 0, memory.size());
        std::vector<float> wide(t->ne[0]);
        const size_t size = ggml_type_size(t->type);  // of one number, or of one block of a packed type
        for (int64_t i = 0; i < ggml_nrows(t); i++) {
            const int64_t i1 = i % t->ne[1], i2 = i / t->ne[1] % t->ne[2], i3 = i / t->ne[1] / t->ne[2];
            const char * from = memory.data() + i1 * t->nb[1] + i2 * t->nb[2] + i3 * t->nb[3];
            for (size_t at = 0; at < row.size(); at += size) std::memcpy(&row[at], from + at / size * t->nb[0], size);
            if (!as_it_is) widen(row.data(), wide.data(), t->ne[0]);
            const char * made = as_it_is ? row.data() : reinterpret_cast<const char *>(wide.data());
            out.insert(out.end(), made, made + (as_it_is ? row.size() : wide.size() * sizeof(float)));
        }
        file.add(keys[t], dtype, {t->ne[3], t->ne[2], t->ne[1], t->ne[0]}, out.data(), out.size());
    }
};
