// Runs a prompt with pictures in llama.cpp and writes every tensor that it computes as a trace file, for
//
//     llava-ref conform -m TEXT.gguf --mmproj MMPROJ.gguf --image A.png -p "What is this?" --against exec:./trace
//
// It compiles against llama.cpp and against forks of it: docs/engines.md. No stage is named here: `conform` knows
// llama.cpp's tensors by their names and operations.

#include "graph.hpp"
#include "llama.h"
#include "mtmd-helper.h"
#include "mtmd.h"

#include <algorithm>
#include <iterator>
#include <numeric>

struct Options {
    std::string text, mmproj, prompt, out;
    std::vector<std::string> images;
    int n_tokens = 0;
};

// Token ids, or the rows of a picture, and where they stand.
struct Part {
    std::vector<llama_token> ids;
    std::vector<float> rows;
    int32_t n = 0;
    llama_pos advance = 0;               // how far the text behind it moves on
    std::vector<llama_pos> turns;        // time, y, x, 0 of every row, where rope turns by three
    bool whole = false;                  // its rows see one another
};

class Engine {
  public:
    Engine(const Options & options, TraceFile & file, Graph & graph) : file(file), graph(graph) {
        llama_backend_init();
        llama_model_params params = llama_model_default_params();
        params.n_gpu_layers = 0;
        params.use_extra_bufts = false;  // no repacked weights
        model = need(llama_model_load_from_file(options.text.c_str(), params), "cannot load " + options.text);
        vocab = llama_model_get_vocab(model);
        if (options.mmproj.empty()) return;
        mtmd_context_params vision_params = mtmd_context_params_default();
        vision_params.use_gpu = vision_params.warmup = false;
        vision_params.n_threads = 1;
        vision_params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
        vision_params.cb_eval = Graph::callback;
        vision_params.cb_eval_user_data = &graph;
        vision = need(mtmd_init_from_file(options.mmproj.c_str(), model, vision_params), "cannot load " + options.mmproj);
    }

    // Evaluate the prompt and return the likeliest tokens behind it.
    std::vector<llama_token> run(const Options & options) {
        const std::vector<Part> parts = vision ? multimodal(options) : std::vector<Part>{plain(options.prompt)};
        llama_context * context = make_context(parts, options.n_tokens);
        std::vector<int64_t> ids;
        llama_pos past = 0;
        llama_token next = 0;
        for (const Part & part : parts) {
            graph.begin("decoder");
            next = decode(context, part, past);
            past += part.advance;
            if (part.ids.empty()) ids.insert(ids.end(), part.n, -1);
            ids.insert(ids.end(), part.ids.begin(), part.ids.end());
        }
        graph.begin(nullptr);
        file.add("token_ids", "I64", {static_cast<int64_t>(ids.size())}, ids.data(), ids.size() * sizeof ids[0]);
        std::vector<llama_token> found;
        while (static_cast<int>(found.size()) < options.n_tokens) {
            found.push_back(next);
            next = decode(context, of_ids({next}), past++);
        }
        return found;
    }

  private:
    TraceFile & file;
    Graph & graph;
    llama_model * model = nullptr;
    const llama_vocab * vocab = nullptr;
    mtmd_context * vision = nullptr;

    template <class T> static T * need(T * pointer, const std::string & problem) {
        if (!pointer) throw std::runtime_error(problem);
        return pointer;
    }

    static Part of_ids(std::vector<llama_token> ids) {
        Part part;
        part.n = part.advance = static_cast<int32_t>(ids.size());
        part.ids = std::move(ids);
        return part;
    }

    Part plain(const std::string & prompt) const {
        std::vector<llama_token> ids(prompt.size() + 8);
        const int n = llama_tokenize(vocab, prompt.data(), prompt.size(), ids.data(), ids.size(), true, true);
        if (n <= 0) throw std::runtime_error("the prompt has no tokens");
        ids.resize(n);
        return of_ids(ids);
    }

    std::vector<Part> multimodal(const Options & options) {
        std::vector<const mtmd_bitmap *> pictures;
        for (const std::string & path : options.images) pictures.push_back(picture(path, pictures.size()));
        std::string prompt = options.prompt;
        const std::string place = "<image>", marker = mtmd_default_marker();
        for (size_t at = 0; (at = prompt.find(place, at)) != std::string::npos; at += marker.size()) {
            prompt.replace(at, place.size(), marker);
        }
        const mtmd_input_text text = {prompt.c_str(), prompt.size(), true, true};
        mtmd_input_chunks * chunks = mtmd_input_chunks_init();
        const int status = mtmd_tokenize(vision, chunks, &text, pictures.data(), pictures.size());
        if (status) throw std::runtime_error("mtmd_tokenize returned " + std::to_string(status));
        std::vector<Part> parts;
        for (size_t i = 0; i < mtmd_input_chunks_size(chunks); i++) parts.push_back(part(mtmd_input_chunks_get(chunks, i)));
        return parts;
    }

    // Decode a picture file; its bytes are the stage image.rgb, of a further picture image.rgb#1 and so on.
    const mtmd_bitmap * picture(const std::string & path, size_t number) {
        const auto found = mtmd_helper_bitmap_init_from_file(vision, path.c_str(), false, mtmd_helper_init_opt_default());
        const mtmd_bitmap * bitmap = need(found.bitmap, "cannot decode " + path);
        const Shape shape = {mtmd_bitmap_get_ny(bitmap), mtmd_bitmap_get_nx(bitmap), 3};
        const std::string name = number ? "image.rgb#" + std::to_string(number) : "image.rgb";
        file.add(name, "U8", shape, mtmd_bitmap_get_data(bitmap), mtmd_bitmap_get_n_bytes(bitmap));
        return bitmap;
    }

    Part part(const mtmd_input_chunk * chunk) {
        if (mtmd_input_chunk_get_type(chunk) == MTMD_INPUT_CHUNK_TYPE_TEXT) {
            size_t n = 0;
            const llama_token * ids = mtmd_input_chunk_get_tokens_text(chunk, &n);
            return of_ids({ids, ids + n});
        }
        graph.begin("picture");
        if (mtmd_encode_chunk(vision, chunk)) throw std::runtime_error("mtmd_encode_chunk failed");
        Part part;
        part.n = static_cast<int32_t>(mtmd_input_chunk_get_n_tokens(chunk));
        part.advance = mtmd_input_chunk_get_n_pos(chunk);
        part.whole = mtmd_decode_use_non_causal(vision, chunk);
        const float * rows = mtmd_get_output_embd(vision);
        part.rows.assign(rows, rows + static_cast<size_t>(part.n) * llama_model_n_embd_inp(model));
        if (!mtmd_decode_use_mrope(vision)) return part;
        std::vector<mtmd_decoder_pos> places(part.n);
        mtmd_helper_image_get_decoder_pos(mtmd_input_chunk_get_tokens_image(chunk), 0, places.data());
        for (const auto & place : places) part.turns.push_back(place.t);
        for (const auto & place : places) part.turns.push_back(place.y);
        for (const auto & place : places) part.turns.push_back(place.x);
        part.turns.resize(4 * places.size(), 0);
        return part;
    }

    // Float32 attention and cache, one thread, and every part of the prompt in one graph.
    llama_context * make_context(const std::vector<Part> & parts, int n_tokens) const {
        uint32_t total = n_tokens, longest = 1;
        for (const Part & part : parts) {
            total += part.n;
            longest = std::max<uint32_t>(longest, part.n);
        }
        llama_context_params params = llama_context_default_params();
        params.n_ctx = std::max<uint32_t>(1024, total);
        params.n_batch = params.n_ubatch = std::max<uint32_t>(1024, longest);
        params.n_threads = params.n_threads_batch = 1;
        params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
        params.type_k = params.type_v = GGML_TYPE_F32;
        params.cb_eval = Graph::callback;
        params.cb_eval_user_data = &graph;
        return need(llama_init_from_model(model, params), "cannot make a context");
    }

    // Evaluate a part from position `past` on, with logits of every position, and return the likeliest next token.
    llama_token decode(llama_context * context, const Part & part, llama_pos past) const {
        std::vector<llama_pos> positions(part.turns);
        if (positions.empty()) positions.resize(part.n), std::iota(positions.begin(), positions.end(), past);
        else for (int i = 0; i < 3 * part.n; i++) positions[i] += past;
        llama_seq_id zero = 0;
        std::vector<int32_t> ones(part.n, 1);
        std::vector<llama_seq_id *> sequence(part.n, &zero);
        std::vector<int8_t> wanted(part.n, 1);
        llama_batch batch = {};
        batch.n_tokens = part.n;
        batch.token = part.ids.empty() ? nullptr : const_cast<llama_token *>(part.ids.data());
        batch.embd = part.ids.empty() ? const_cast<float *>(part.rows.data()) : nullptr;
        batch.pos = positions.data(), batch.n_seq_id = ones.data();
        batch.seq_id = sequence.data(), batch.logits = wanted.data();
        if (part.whole) llama_set_causal_attn(context, false);
        const int status = llama_decode(context, batch);
        if (part.whole) llama_set_causal_attn(context, true);
        if (status) throw std::runtime_error("llama_decode returned " + std::to_string(status));
        const float * logits = llama_get_logits_ith(context, part.n - 1);
        return std::max_element(logits, logits + llama_vocab_n_tokens(vocab)) - logits;
    }
};

static Options parsed(int argc, char ** argv) {
    Options options;
    std::unordered_map<std::string, std::string *> words = {
        {"-m", &options.text}, {"--mmproj", &options.mmproj}, {"-f", &options.prompt}, {"-o", &options.out}};
    for (int i = 1; i + 1 < argc; i += 2) {
        const std::string name = argv[i];
        if (name == "--image") options.images.push_back(argv[i + 1]);
        else if (name == "-n") options.n_tokens = std::stoi(argv[i + 1]);
        else if (words.count(name)) *words[name] = argv[i + 1];
        else throw std::runtime_error("unknown option " + name);
    }
    if (options.text.empty() || options.prompt.empty() || options.out.empty())
        throw std::runtime_error("expected -m TEXT.gguf [--mmproj M.gguf] [--image FILE]... -f PROMPT.txt [-n N] -o OUT");
    std::ifstream file(options.prompt, std::ios::binary);
    if (!file) throw std::runtime_error("cannot read " + options.prompt);
    options.prompt.assign(std::istreambuf_iterator<char>(file), {});
    return options;
}

int main(int argc, char ** argv) {
    try {
        const Options options = parsed(argc, argv);
        TraceFile file(options.out);
        Graph graph(file);
        const std::vector<llama_token> found = Engine(options, file, graph).run(options);
        file.finish({{"arithmetic", "ggml"}, {"generated", joined(found)}, {"graph", graph.lines()}});
    } catch (const std::exception & error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
