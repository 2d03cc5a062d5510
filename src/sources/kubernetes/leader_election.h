// One of several replicas leads: the one that holds a Lease, as client-go's leader election has it
// (https://pkg.go.dev/k8s.io/client-go/tools/leaderelection), so that replicas of the reference and ours can
// take turns.
//
// A leader that cannot reach the API server goes on leading until it sees another holder: nobody is served
// better by a picker that stops, and two at a time do no harm. client-go's gives up after 10 s.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/log.h"
#include "net/loop.h"
#include "sources/kubernetes/api_server.h"

namespace fairway::sources::kubernetes {

struct LeaderElectionOptions {
  std::string namespace_name;
  std::string name;  // of the Lease
  // Unlike any other replica's, and the same again after a restart in the same Pod: a Lease that has it is
  // ours.
  std::string identity;
  base::Nanos lease = 15 * base::kSecond;  // how long a leader that says nothing more is waited for
  base::Nanos renew = 2 * base::kSecond;   // how often a leader says that it is there
  base::Nanos look = base::kSecond;        // how often the others look
  base::Nanos call_timeout = 5 * base::kSecond;
  uint64_t seed = 1;
};

// Owned by its loop's thread. The API server outlives it. Rights: get, create and update on leases.
class LeaderElection {
 public:
  using Changed = std::function<void(bool leading)>;

  // `changed` runs on the loop with each change; nobody leads at first.
  LeaderElection(net::Loop& loop, ApiServer& server, LeaderElectionOptions options, const base::Clock& clock,
                 const base::Log& log, Changed changed);
  ~LeaderElection();  // without a word: the others wait for the lease to run out
  LeaderElection(const LeaderElection&) = delete;
  LeaderElection& operator=(const LeaderElection&) = delete;

  // Gives the Lease back, if it is ours, and leads no more. `done` runs on the loop, within call_timeout.
  void Release(std::function<void()> done);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// "2026-01-01T00:00:00.000000Z": a Lease's times want six decimals. Of the system's wall clock.
std::string MicroTime(int64_t microseconds_since_1970);

}  // namespace fairway::sources::kubernetes
