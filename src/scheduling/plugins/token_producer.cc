// token-producer: where the tokens of prompts come from that bodies have as text. `vllm`: a render server of
// vLLM is asked for them: `url` (http://localhost:8000; plain HTTP), `timeout` (5s) and `mmTimeout` (30s, of
// prompts with images and the like), which a request waits at most before it is decided without them;
// `modelName` is what the server is asked for, "" (the default) the model that the request names; alone it is
// the same as `vllm: {}`. Who has neither needs no tokens: prompts are then compared by their text.
// `tokenizer` is its old name.
//
// Source: the reference's producer of this name (llm-d router), whose `estimate` packs 4 bytes of text to a
// token.
#include <string>
#include <string_view>

#include "base/strings.h"
#include "scheduling/plugin.h"

namespace fairway::scheduling {
namespace {

constexpr std::string_view kEstimated = "without `vllm` prompts are compared by their text";

class TokenProducer final : public Plugin, public TokenSource {
 public:
  explicit TokenProducer(Build& build) {
    build.NoEffect({"estimate", "udsTokenizerConfig"}, kEstimated);
    where_.model = build.Text("modelName", "", "Of the server that makes tokens; empty: the request's");
    const api::Node node =
        build.Object("vllm", "The server that makes tokens of prompts: vLLM's render endpoint");
    const bool other = build.Given("estimate") || build.Given("udsTokenizerConfig");
    given_ = node.present() || (!where_.model.empty() && !other);
    api::ObjectReader reader(node);
    const api::Node url = reader.Get("url");
    ReadUrl(url, url.Text().value_or("http://localhost:8000"));
    ReadDuration(reader.Get("timeout"), where_.timeout);
    ReadDuration(reader.Get("mmTimeout"), where_.media_timeout);
    if (node.present()) reader.Finish();
  }
  const Where* token_source() const noexcept override { return given_ ? &where_ : nullptr; }

 private:
  void ReadUrl(const api::Node& node, std::string_view url) {
    constexpr std::string_view kScheme = "http://";
    const auto wrong = [&node] {
      node.Error("must be http://HOST, with :PORT and /PATH where they are needed");
    };
    if (!url.starts_with(kScheme)) return wrong();
    url.remove_prefix(kScheme.size());
    const size_t slash = std::min(url.find('/'), url.size());
    std::string_view host = url.substr(0, slash);
    std::string_view path = url.substr(slash);
    while (path.ends_with('/')) path.remove_suffix(1);
    const size_t bracket = host.find(']');
    const size_t colon = host.find(':', bracket == std::string_view::npos ? 0 : bracket);
    if (colon != std::string_view::npos) {
      const auto port = base::ParseInteger<uint16_t>(host.substr(colon + 1));
      if (!port || *port == 0) return wrong();
      where_.port = *port;
      host = host.substr(0, colon);
    }
    if (bracket != std::string_view::npos && host.starts_with('[') && host.ends_with(']'))
      host = host.substr(1, host.size() - 2);
    const auto of_host = [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
             c == '.' || c == '_' || c == ':';
    };
    const auto of_path = [](char c) { return c > ' ' && c < 0x7f && c != '?' && c != '#'; };
    const bool good = !host.empty() && host.size() <= kMostHost && path.size() <= kMostPath &&
                      std::all_of(host.begin(), host.end(), of_host) &&
                      std::all_of(path.begin(), path.end(), of_path);
    if (!good) return wrong();
    where_.host = host;
    where_.path = path;
  }

  static void ReadDuration(const api::Node& node, base::Nanos& to) {
    const auto text = node.Text();
    if (!text) return;
    const auto duration = base::ParseDuration(*text);
    if (!duration || *duration < base::kMillisecond || *duration > 600 * base::kSecond) {
      node.Error("must be a duration from 1ms to 10m, such as 5s");
      return;
    }
    to = *duration;
  }

  static constexpr size_t kMostHost = 253;  // bytes of a name
  static constexpr size_t kMostPath = 1024;
  Where where_;
  bool given_ = false;
};

}  // namespace

std::unique_ptr<Plugin> MakeTokenProducer(Build& build) { return std::make_unique<TokenProducer>(build); }

}  // namespace fairway::scheduling
