// Whether the bearer of a token may read one of our pages: the API server says whose it is (TokenReview) and
// whether that one may `get` the path (SubjectAccessReview), as the reference picker asks it for its metrics.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/log.h"
#include "base/metrics.h"
#include "base/result.h"
#include "net/loop.h"
#include "sources/kubernetes/client_config.h"

namespace fairway::sources::kubernetes {

struct AccessReviewOptions {
  base::Nanos keep_allowed = 60 * base::kSecond;  // before it is asked again
  base::Nanos keep_refused = 10 * base::kSecond;  // the same for a no
  base::Nanos keep_stale = 600 * base::kSecond;   // a yes counts so long while the API server is away or slow
  base::Nanos timeout = 5 * base::kSecond;        // for each of the two calls
  base::Nanos patience = base::kSecond;           // then somebody who had a yes before does not wait longer
  base::Nanos max_wait = 10 * base::kSecond;      // then it is kUnavailable
  size_t max_kept = 256;                          // of each, yes and no; then the oldest goes
  size_t max_waiting = 64;       // who ask; then one of the address that has most gets kUnavailable at once
  size_t max_token = 16u << 10;  // bytes; a longer one is nobody's
};

// Owned by its loop's thread. Asks one question at a time: first for those who had a yes before, then for the
// addresses in turn.
class AccessReview {
 public:
  enum class Verdict {
    kAllowed,
    kUnknown,      // nobody's token
    kForbidden,    // somebody's, who may not
    kUnavailable,  // the API server did not say; the log says why
  };
  using Done = std::function<void(Verdict)>;

  // The error says what is wrong with the credentials. Clock, log and registry outlive it.
  static base::Result<std::unique_ptr<AccessReview>> Create(net::Loop& loop, ClientConfig config,
                                                            const base::Clock& clock, const base::Log& log,
                                                            base::Registry& registry,
                                                            const AccessReviewOptions& options = {});
  ~AccessReview();  // questions that wait get no answer any more
  AccessReview(const AccessReview&) = delete;
  AccessReview& operator=(const AccessReview&) = delete;

  // Answers once, on the loop; at once when it is known. `from`: the asker's share (net::PeerShareOf).
  void MayGet(const std::string& token, const std::string& path, const std::string& from, Done done);

 private:
  struct Impl;
  explicit AccessReview(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace fairway::sources::kubernetes
