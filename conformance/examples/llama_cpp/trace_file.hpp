// Writes a trace file: safetensors, which is eight bytes with the length of a header, the header as JSON, the arrays.
#pragma once

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

using Shape = std::vector<int64_t>;  // slowest axis first

inline std::string quoted(const std::string & text) {  // as JSON
    std::string out = "\"";
    for (const char c : text) {
        char code[8];
        std::snprintf(code, sizeof code, "\\u%04x", static_cast<unsigned char>(c));
        if (c == '"' || c == '\\') out += '\\';
        out += c >= 0 && c < ' ' ? code : std::string(1, c);
    }
    return out + '"';
}

template <class T> std::string joined(const std::vector<T> & numbers) {
    std::string out;
    for (const T & number : numbers) out += (out.empty() ? "" : ",") + std::to_string(number);
    return "[" + out + "]";
}

// The header stands first but is known last, so the arrays wait in a file of their own.
class TraceFile {
  public:
    explicit TraceFile(const std::string & path) : path(path), body(path + ".body", std::ios::binary) {}
    ~TraceFile() { std::remove((path + ".body").c_str()); }

    // Add an array; `dtype` is F32, U8, I64, ... as safetensors has it, `data` contiguous.
    void add(const std::string & name, const char * dtype, const Shape & shape, const void * data, size_t size) {
        header += ",\n" + quoted(name) + ":{\"dtype\":\"" + dtype + "\",\"shape\":" + joined(shape) +
                  ",\"data_offsets\":" + joined(std::vector<size_t>{at, at + size}) + "}";
        body.write(static_cast<const char *>(data), static_cast<std::streamsize>(size));
        at += size;
    }

    // Write the file. `metadata` holds pairs of a key and its text.
    void finish(const std::vector<std::pair<std::string, std::string>> & metadata) {
        body.close();
        std::string facts;
        for (const auto & [key, text] : metadata) facts += (facts.empty() ? "" : ",") + quoted(key) + ":" + quoted(text);
        std::string text = "{\"__metadata__\":{" + facts + "}" + header + "}";
        text.append((8 - text.size() % 8) % 8, ' ');
        const uint64_t length = text.size();
        std::ofstream out(path, std::ios::binary);
        out.write(reinterpret_cast<const char *>(&length), sizeof length);  // on a little-endian machine
        out << text << std::ifstream(path + ".body", std::ios::binary).rdbuf();
        out.close();
        if (!body || !out) throw std::runtime_error("cannot write " + path);
    }

  private:
    std::string path, header;
    std::ofstream body;
    size_t at = 0;
};
