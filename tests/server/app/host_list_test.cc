// SPDX-License-Identifier: Apache-2.0
// tests/slurm compares with scontrol.
#include "server/app/host_list.h"

#include <gtest/gtest.h>

#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace annulus::server {
namespace {

std::string expanded(const std::string& list) {
  const auto hosts = expand_hosts(list);
  return hosts.ok() ? absl::StrJoin(*hosts, " ") : std::string(hosts.status().message());
}

TEST(HostList, NamesRangesAndZeros) {
  EXPECT_EQ(expanded("gpu-a"), "gpu-a");
  EXPECT_EQ(expanded("node[1-3,07-10],gpu-a"),
            "node1 node2 node3 node07 node08 node09 node10 gpu-a");
  EXPECT_EQ(expanded("a[8-11]"), "a8 a9 a10 a11");
  EXPECT_EQ(expanded("a[008-11]"), "a008 a009 a010 a011");
  EXPECT_EQ(expanded("a[08-011]"), "a08 a09 a10 a11");
  EXPECT_EQ(expanded("[1-3]"), "1 2 3");
  EXPECT_EQ(expanded("a[5]"), "a5");
}

TEST(HostList, SeveralBracketsAndWhatFollowsThem) {
  EXPECT_EQ(expanded("a[1-2]b[3-4]"), "a1b3 a1b4 a2b3 a2b4");
  EXPECT_EQ(expanded("a[1-2][3,5]"), "a13 a15 a23 a25");
  EXPECT_EQ(expanded("r[1-2]n[01-02]-ib.example.org,login"),
            "r1n01-ib.example.org r1n02-ib.example.org r2n01-ib.example.org r2n02-ib.example.org "
            "login");
}

TEST(HostList, OrderAndRepetitionStayAndEmptyPlacesDoNotCount) {
  EXPECT_EQ(expanded("b,a[1-2],a1"), "b a1 a2 a1");
  EXPECT_EQ(expanded(",a,,b,"), "a b");
}

TEST(HostList, MistakesAreShownWhereTheyAre) {
  const auto says = [](const std::string& list, const std::string& what) {
    EXPECT_FALSE(expand_hosts(list).ok()) << list;
    EXPECT_NE(expanded(list).find(what), std::string::npos) << expanded(list);
    EXPECT_NE(expanded(list).find(absl::StrCat("\"", list, "\"")), std::string::npos);
  };
  says("node[1-3", "at character 5: this [ has no ]");
  says("node1-3]", "at character 8: this ] has no [");
  says("a[1[2]]", "at character 4: a bracket inside a bracket");
  says("a[3-1]", "at character 3: the range 3-1 runs backwards");
  says("a[1,x]", "at character 5: \"x\" is neither");
  says("a[1--2]", "\"1--2\" is neither");
  says("a[]", "\"\" is neither");
  says("a[1,]", "\"\" is neither");
  says("a b", "' ' does not belong");
  says("a;b", "';' does not belong");
  says("", "no name");
  says(",,", "no name");
}

TEST(HostList, AListIsBounded) {
  EXPECT_EQ(expand_hosts("a[1-65536]")->size(), kMostHosts);
  for (const char* list : {"a[1-65537]", "a[0-999999999999999999]", "a[1-60000,1-60000]",
                           "a[1-300][1-300]", "a[1-60000],b[1-60000]", "a[1-256][1-256][1-256]"}) {
    EXPECT_NE(expanded(list).find("more than 65536 hosts"), std::string::npos) << list;
  }
  EXPECT_FALSE(expand_hosts("a[99999999999999999999]").ok());
  EXPECT_FALSE(expand_hosts(std::string(300, 'a')).ok());
  EXPECT_LT(expanded(std::string(1 << 20, '[')).size(), 400u);
}

TEST(HostList, AnyBytesGiveNamesOrALine) {
  std::mt19937 random(1);
  const std::string alphabet = "ab01-,[]. ";
  for (int round = 0; round < 20000; ++round) {
    std::string list;
    for (size_t i = 0; i < random() % 24; ++i) list += alphabet[random() % alphabet.size()];
    const auto hosts = expand_hosts(list);
    if (!hosts.ok()) continue;
    EXPECT_LE(hosts->size(), kMostHosts);
    for (const std::string& host : *hosts) {
      EXPECT_EQ(host.find_first_of("[], "), std::string::npos) << list;
      EXPECT_FALSE(host.empty());
    }
  }
}

}  // namespace
}  // namespace annulus::server
