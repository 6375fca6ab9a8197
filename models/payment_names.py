"""What records of payments are, and what of them is looked at: names in the order of the columns.

Here because settings and alerts need the names and no compiler; payment_features.py has the rules.
Counts "in 7 d" fade with a half-life of that long, and so does what shares are made of.
"""

NAMES = (
    "amount",
    "amount in deviations from the customer's usual one",
    "amount over the customer's usual one",
    "payments of the customer in 1 h",
    "payments of the customer in 1 d",
    "payments of the customer in 7 d",
    "hours since the customer's last payment",
    "payments of the customer here before",
    "customer's share of frauds over the usual one",
    "frauds of the customer in 14 d",
    "large payments of the customer in 7 d",
    "payments here in 1 d",
    "payments here in 7 d",
    "amount in deviations from the usual one here",
    "share of frauds here in 1 d over the usual one",
    "share of frauds here in 7 d over the usual one",
    "share of frauds here in 28 d over the usual one",
    "frauds here in 28 d",
    "days since the last fraud here",
    "the last label here",
    "frauds in a row here",
    "amount over the customer's last 7 d",
    "days since frauds began here",
    "days since the customer's last fraud",
    "hour of the day",
)
PAYMENT, FRAUD, HONEST, UNCLEAR = range(4)  # kinds of a record: the last three have a label
FEATURES = len(NAMES)
CHANCE = "chance of fraud"  # by the labels so far; shown beside the features, and none of them
