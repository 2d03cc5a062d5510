#include "net/tls_trust.h"

#include <openssl/pem.h>
#include <openssl/ssl.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "net/openssl_helpers.h"

namespace fairway::net {
namespace {

constexpr std::string_view kBegin = "-----BEGIN ";
constexpr std::string_view kDashes = "-----";
constexpr size_t kMaxNamed = 8;    // of those that were skipped
constexpr size_t kMaxTried = 256;  // anchors by themselves; each takes some 10 us

// A certificate's block, from BEGIN up to the next one: where OpenSSL's reader stops after a broken block is
// not defined, so each gets a reader of its own.
struct Block {
  std::string_view text;
  size_t line = 0;
};

std::vector<Block> CertificateBlocks(std::string_view pem) {
  std::vector<Block> blocks;
  size_t line = 1;
  size_t counted = 0;
  for (size_t at = pem.find(kBegin); at != std::string_view::npos;) {
    const size_t next = pem.find(kBegin, at + kBegin.size());
    const std::string_view text = pem.substr(at, next == std::string_view::npos ? next : next - at);
    const std::string_view rest = text.substr(kBegin.size());
    if (rest.substr(0, rest.find(kDashes)).ends_with("CERTIFICATE")) {
      const std::string_view before = pem.substr(counted, at - counted);
      line += static_cast<size_t>(std::count(before.begin(), before.end(), '\n'));
      counted = at;
      blocks.push_back({text, line});
    }
    at = next;
  }
  return blocks;
}

using Anchors = std::vector<X509Ptr>;

struct FreeStack {
  void operator()(STACK_OF(X509) * stack) const { sk_X509_free(stack); }  // not what is in it
};

// They live as long as their context, which connections keep.
void FreeAnchors(void*, void* data, CRYPTO_EX_DATA*, int, long, void*) { delete static_cast<Anchors*>(data); }

int AnchorsIndex() {
  static const int index = SSL_CTX_get_ex_new_index(0, nullptr, nullptr, nullptr, FreeAnchors);
  return index;
}

// The same question with this anchor alone.
bool VerifiesWith(X509* anchor, X509_STORE_CTX* asked) {
  const std::unique_ptr<X509_STORE_CTX, Freer<X509_STORE_CTX_free>> context(X509_STORE_CTX_new());
  const std::unique_ptr<STACK_OF(X509), FreeStack> trusted(sk_X509_new_null());
  X509_VERIFY_PARAM* parameters = X509_VERIFY_PARAM_new();
  if (context == nullptr || trusted == nullptr || parameters == nullptr ||
      sk_X509_push(trusted.get(), anchor) <= 0 ||
      X509_VERIFY_PARAM_set1(parameters, X509_STORE_CTX_get0_param(asked)) != 1 ||
      X509_STORE_CTX_init(context.get(), nullptr, X509_STORE_CTX_get0_cert(asked),
                          X509_STORE_CTX_get0_untrusted(asked)) != 1) {
    X509_VERIFY_PARAM_free(parameters);
    return false;
  }
  X509_STORE_CTX_set0_param(context.get(), parameters);
  X509_STORE_CTX_set0_trusted_stack(context.get(), trusted.get());
  if (X509_verify_cert(context.get()) != 1) return false;
  X509_STORE_CTX_set0_verified_chain(asked, X509_STORE_CTX_get1_chain(context.get()));
  return true;
}

// OpenSSL takes one of several anchors of a name, by dates and key identifiers, and does not come back when
// its key has not signed: then each is asked by itself.
int Verify(X509_STORE_CTX* context, void* data) {
  if (X509_verify_cert(context) == 1) return 1;
  const auto& anchors = *static_cast<const Anchors*>(data);
  const int error = X509_STORE_CTX_get_error(context);
  const bool found = std::any_of(anchors.begin(), anchors.end(),
                                 [&](const X509Ptr& anchor) { return VerifiesWith(anchor.get(), context); });
  X509_STORE_CTX_set_error(context, found ? X509_V_OK : error);
  return found ? 1 : 0;
}

// "" when the store and `anchors` have it now, else why not.
std::string Add(X509_STORE* store, std::string_view block, Anchors& anchors) {
  ERR_clear_error();
  const BioPtr bio = Reader(block);
  X509Ptr authority(PEM_read_bio_X509_AUX(bio.get(), nullptr, nullptr, nullptr));
  if (authority == nullptr) {
    const unsigned long last = ERR_peek_last_error();
    const bool cut =
        ERR_GET_REASON(last) == PEM_R_NO_START_LINE || ERR_GET_REASON(last) == PEM_R_BAD_END_LINE;
    const std::string why = TakeReason();
    return cut ? "it has no end" : why;
  }
  if (X509_STORE_add_cert(store, authority.get()) != 1) return TakeReason();
  if (anchors.size() < kMaxTried) anchors.push_back(std::move(authority));
  return "";
}

}  // namespace

base::Result<std::vector<std::string>> TrustBundle(SSL_CTX* context, std::string_view pem) {
  const std::vector<Block> blocks = CertificateBlocks(pem);
  if (blocks.empty())
    return base::Fail(base::ErrorCode::kInvalidArgument, "the CA data hold no PEM certificate");
  X509_STORE* store = SSL_CTX_get_cert_store(context);
  auto anchors = std::make_unique<Anchors>();
  std::vector<std::string> skipped;
  size_t failed = 0;
  for (size_t i = 0; i < blocks.size(); ++i) {
    const std::string why = Add(store, blocks[i].text, *anchors);
    if (why.empty()) continue;
    if (++failed > kMaxNamed) continue;
    skipped.push_back("certificate " + std::to_string(i + 1) + " (line " + std::to_string(blocks[i].line) +
                      ") cannot be read: " + why);
  }
  ERR_clear_error();
  if (failed == blocks.size())
    return base::Fail(base::ErrorCode::kInvalidArgument, "the CA data are damaged: " + skipped[0]);
  if (failed > skipped.size()) skipped.push_back(std::to_string(failed - skipped.size()) + " more");
  // Without it OpenSSL wants every chain to end at a certificate that signed itself. Clusters under a
  // company's root hand out their intermediate authority alone.
  X509_VERIFY_PARAM_set_flags(SSL_CTX_get0_param(context), X509_V_FLAG_PARTIAL_CHAIN);
  if (anchors->size() > 1) {
    SSL_CTX_set_cert_verify_callback(context, Verify, anchors.get());
    SSL_CTX_set_ex_data(context, AnchorsIndex(), anchors.release());
  }
  return skipped;
}

}  // namespace fairway::net
