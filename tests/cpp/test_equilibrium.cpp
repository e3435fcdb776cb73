// The scalar mathematics of Attribution Equilibrium against values worked out by hand.
#include <initializer_list>
#include <limits>

#include "check.h"
#include "equilibrium.h"

using namespace rapkernels;

template <typename T>
void check_terms(const Terms<T>& got, double hedged, double on, double off) {
  CHECK_NEAR(got.hedged, hedged, 0);
  CHECK_NEAR(got.on, on, 0);
  CHECK_NEAR(got.off, off, 0);
}

template <typename T>
void neurons() {
  check_terms(neuron_of(T(3)), 3, 1, 0);
  check_terms(neuron_of(T(0)), 0, 0, 1);
  check_terms(neuron_of(T(-3)), 0, 0, 1);
  check_terms(neuron_of(std::numeric_limits<T>::quiet_NaN()), 0, 0, 0);
}

template <typename T>
void evidence() {
  const SignedSums sums = signed_sums_of(8, -4);
  check_terms(evidence_of(T(2), sums, T(1.5)), 0.375, 0.25, 0);
  check_terms(evidence_of(T(-2), sums, T(1.5)), -0.5, 0, -0.5);
  check_terms(evidence_of(T(0), sums, T(1.5)), 0, 0, 0);
  // Relevance of one sign leaves the other at 0, and so does one beyond the range of a double.
  check_terms(evidence_of(T(2), signed_sums_of(8, 0), T(1)), 0.25, 0.25, 0);
  check_terms(evidence_of(T(-2), signed_sums_of(0, -4), T(1)), -0.5, 0, -0.5);
  const double infinity = std::numeric_limits<double>::infinity();
  check_terms(evidence_of(T(2), signed_sums_of(infinity, 0), T(1)), 0, 0, 0);
  // A ratio beyond the range of T is no message.
  check_terms(evidence_of(T(2), sums, std::numeric_limits<T>::infinity()), 0, 0.25, 0);
  CHECK(incoming_of(Guard<T>::largest, -Guard<T>::largest) == T(0));
  CHECK(incoming_of(T(0), T(5)) == T(0));
}

template <typename T>
void quotients() {
  const Terms<T> given{T(-3), T(1), T(-2)};
  check_terms(equilibrium_quotient(given, {T(2), T(4), T(8)}), -1.5, 0.25, -0.25);
  CHECK_NEAR(met_evidence(given, {T(2), T(4), T(8)}), -4, 0);
  check_terms(equilibrium_quotient(given, {T(0), T(4), Guard<T>::tiny}), 0, 0.25, 0);
  CHECK_NEAR(met_evidence(given, {T(0), T(4), Guard<T>::tiny}), 1, 0);
}

template <typename T>
void contributions() {
  const Terms<T> gradient{T(0.5), T(3), T(-7)};
  CHECK_NEAR(equilibrium_contribution(T(4), gradient, T(0.25)), 2 - 0.25 + 3, 0);
  CHECK_NEAR(equilibrium_contribution(T(0), gradient, T(0.25)), -7, 0);
  CHECK_NEAR(equilibrium_contribution(T(-4), gradient, T(0.25)), -7, 0);
  // Without a hedged contribution there is nothing to shift.
  CHECK_NEAR(equilibrium_contribution(T(4), {T(0), T(3), T(-7)}, T(0.25)), 3, 0);
  const T infinity = std::numeric_limits<T>::infinity();
  CHECK_NEAR(equilibrium_contribution(T(4), {infinity, T(3), T(0)}, T(0.25)), 3, 0);
}

void settled() {
  const double count = 4;
  const double none = 0;
  // received 6 - 2 at a scale of 8; expected 1.5 less the shift of 1.
  const EquilibriumState shifts = settled_equilibrium(signed_sums_of(6, -2), 1.5, &count, 8);
  CHECK_NEAR(shifts.psi, 0.25, 0);
  CHECK_NEAR(shifts.absorbed, 32 - 0.5, 0);
  for (const double* counted : {&none, static_cast<const double*>(nullptr)}) {
    const EquilibriumState stays = settled_equilibrium(signed_sums_of(6, -2), 1.5, counted, 8);
    CHECK_NEAR(stays.psi, 0, 0);
    CHECK_NEAR(stays.absorbed, 32 - 1.5, 0);
  }
  CHECK_NEAR(settled_equilibrium(signed_sums_of(0, -2), -1, &count, 1).psi, 0, 0);
}

template <typename T>
void all() {
  neurons<T>();
  evidence<T>();
  quotients<T>();
  contributions<T>();
}

int main() {
  all<float>();
  all<double>();
  settled();
  return report();
}
